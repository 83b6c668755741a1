"""Servers of the v2 protocol that answer the same clients: a gateway of ours, and NVIDIA's Triton where its environment is installed.

Both serve ``tensors`` (``plugins/tensors.py``), ``unit.predict`` and ``unit.stream`` (``plugins/unit.py``).
"""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from tests.gateway.conftest import PLUGINS, Lab


def plugin(name: str) -> ModuleType:
    """A single-file plugin as a module."""
    spec = importlib.util.spec_from_file_location(f"v2_{name}", PLUGINS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TENSORS = plugin("tensors")


class Server(NamedTuple):
    """A server that runs."""

    name: str
    http: str
    """HOST:PORT."""
    grpc: str
    process: Any


def start_gateway(lab: Lab, *sets: str) -> Server:
    """A gateway over the two scenarios."""
    lab.publish("tensors", inputs=list(TENSORS.INPUTS), outputs=list(TENSORS.OUTPUTS))
    lab.publish("unit")
    process = lab.start({"tensors": "tensors", "unit": "unit"}, 'scenarios.tensors.serve.engine="onnx"', "gateway.grpc_port=0", *sets)
    for name in ("tensors", "unit"):
        process.wait_event("worker_ready", scenario=name)
    return Server("gateway", process.url.removeprefix("http://"), process.wait_event("listening_grpc")["address"], process)


def arrays(rows: int = 2, length: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of ``tensors``."""
    rng = np.random.default_rng(seed)
    return {"X": rng.integers(-9, 9, (rows, 4)).astype(np.float32), "IDS": rng.integers(1, 100, (rows, length))}


def expected(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ``tensors`` gives: the forward itself; a row without an axis has one of length 1 in the protocol."""
    found = TENSORS.forward(inputs)
    return found | {"COUNT": found["COUNT"].reshape(-1, 1)}


DATATYPES = {"float32": "FP32", "int64": "INT64"}


def inputs_of(client: ModuleType, values: dict[str, np.ndarray], **options: Any) -> list[Any]:
    """``InferInput`` values of a tritonclient module."""
    found = []
    for name, array in values.items():
        tensor = client.InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
        tensor.set_data_from_numpy(array, **options)
        found.append(tensor)
    return found


def request_of(client: ModuleType, *texts: str, **options: Any) -> list[Any]:
    """The tensor ``REQUEST``."""
    tensor = client.InferInput("REQUEST", [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object), **options)
    return [tensor]


def same(result: Any, wanted: dict[str, np.ndarray]) -> None:
    """Whether a result holds these outputs."""
    for name, array in wanted.items():
        found = result.as_numpy(name)
        assert found.shape == array.shape
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
