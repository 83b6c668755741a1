"""Scenarios as the models of the v2 protocol: their names, tensors, configuration and readiness.

- ``NAME``: the signature's tensors; where the scenario is no tensor function, as ``NAME.predict``;
- ``NAME.predict``: whole predict requests, one an element of the ``BYTES`` tensor ``REQUEST``; their answers in ``RESPONSE``;
- ``NAME.stream``: one such request, answered in parts (a decoupled model), where the scenario streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from scenarium.core import __version__
from scenarium.core.errors import ScenariumError
from scenarium.core.tensors import REQUEST, RESPONSE, declared

if TYPE_CHECKING:
    from scenarium.core.manifest import Manifest
    from scenarium.core.tensors import Declared
    from scenarium.gateway.app import Gateway
    from scenarium.gateway.services import Service

Form = Literal["tensors", "predict", "stream"]
EXTENSIONS = [
    "classification",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
]


class Model(NamedTuple):
    """One model of the protocol."""

    name: str
    service: Service
    manifest: Manifest
    form: Form

    @property
    def version(self) -> str:
        """The version that is served, or would be."""
        return str(self.service.served)

    @property
    def max_batch_size(self) -> int:
        """Most rows of a request; 0: its tensors have no batch axis in the sense of the protocol."""
        return (self.service.config.max_batch_size or self.manifest.max_batch_size) if self.form == "tensors" else 0

    @property
    def tensors(self) -> tuple[tuple[Declared, ...], tuple[Declared, ...]]:
        """What it takes and gives."""
        if self.form == "tensors":
            return declared(self.manifest.inputs), declared(self.manifest.outputs)
        return (REQUEST,), (RESPONSE,)


def scenario_of(gateway: Gateway, name: str) -> str:
    """The scenario that a model's name names, whether there is one or not."""
    return name if name in gateway.services else name.rpartition(".")[0] or name


def find(gateway: Gateway, name: str, version: str = "") -> Model:
    """The model of that name.

    Raises:
        ScenariumError: SCN-4202 (there is none, or not in this version).
    """
    scenario, form = name, ""
    if name not in gateway.services:
        scenario, _, form = name.rpartition(".")
    service = gateway.services.get(scenario)
    found = service.version if service else None
    if service and found and (not version or version == str(found.number)):
        manifest = found.manifest
        if not form:
            return Model(name, service, manifest, "tensors" if manifest.inputs else "predict")
        if form == "predict":
            return Model(name, service, manifest, "predict")
        if form == "stream" and manifest.streams:
            return Model(name, service, manifest, "stream")
    raise ScenariumError("SCN-4202", name=name, version=f" version {version}" if version else "")


def every(gateway: Gateway) -> Iterator[Model]:
    """All models, those of one scenario beside each other."""
    for name, service in gateway.services.items():
        if service.version is None:
            continue
        manifest = service.version.manifest
        yield find(gateway, name)
        yield find(gateway, f"{name}.predict")
        if manifest.streams:
            yield find(gateway, f"{name}.stream")


def server() -> dict[str, Any]:
    """Metadata of the server."""
    return {"name": "scenarium", "version": __version__, "extensions": EXTENSIONS}


def is_ready(gateway: Gateway, model: Model) -> bool:
    """Whether a request would be answered: an idle scenario is loaded by it."""
    return (model.service.ready or model.service.state == "idle") and not gateway.draining


def server_ready(gateway: Gateway) -> bool:
    """As ``/readyz`` says."""
    required = [service for service in gateway.services.values() if service.config.required]
    return gateway.started and not gateway.draining and all(service.ready for service in required)


def metadata(model: Model) -> dict[str, Any]:
    """Names, types and shapes of its tensors."""
    inputs, outputs = ([{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs] for specs in model.tensors)
    return {"name": model.name, "versions": [model.version], "platform": "scenarium", "inputs": inputs, "outputs": outputs}


def config(model: Model) -> dict[str, Any]:
    """What Triton's ``ModelConfig`` would say of it (``model_config.proto``)."""
    inputs, outputs = ([_tensor(spec, bool(model.max_batch_size)) for spec in specs] for specs in model.tensors)
    found: dict[str, Any] = {
        "name": model.name,
        "platform": "",
        "backend": "scenarium",
        "version_policy": {"specific": {"versions": [int(model.version)]}},
        "max_batch_size": model.max_batch_size,
        "input": inputs,
        "output": outputs,
        "model_transaction_policy": {"decoupled": model.form == "stream"},
    }
    if model.max_batch_size:
        found["dynamic_batching"] = {"max_queue_delay_microseconds": round(model.service.config.max_delay_ms * 1000)}
    return found


def _tensor(spec: Declared, batched: bool) -> dict[str, Any]:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": list(spec.shape[1:] if batched else spec.shape)}
