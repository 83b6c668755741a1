"""A stored version as TorchScript, for Triton's pytorch backend: traced with held-out rows, and compared on them as the ONNX export is."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenarium.core import acceptance, exports
from scenarium.core.compare import held_out
from scenarium.core.errors import ScenariumError, Words
from scenarium.core.progress import Progress
from scenarium.core.runtime import STATE, Runtime
from scenarium.core.types import Batch, Signature

if TYPE_CHECKING:
    from scenarium.core.registry import Scenario
    from scenarium.core.store import Version

FILE = "model.pt"


def write(scenario: Scenario, version: Version, path: Path, progress: Progress | None = None) -> str:
    """Trace the version's module into ``path``; the batch axis and each axis declared -1 stay free. What was measured, as one line.

    Raises:
        ScenariumError: SCN-3007 (it answers differently), SCN-3008 (it cannot be traced), 2xxx (the held-out rows are not at hand).
    """
    manifest = version.manifest
    config = acceptance.stored_config(scenario, manifest)
    config = config.model_copy(update={"serve": config.serve.model_copy(update={"engine": "torch", "device": "cpu"})})
    state = json.loads((version.folder / STATE).read_text(encoding="utf8"))
    runtime = Runtime(scenario.with_config(config), state, version.folder, traits=manifest.traits)
    try:
        module = getattr(runtime.model, "module", None)
        if module is None or not runtime.signature.inputs:
            raise ScenariumError("SCN-3008", reason=Words("it is no module with a tensor signature", "它不是带张量签名的模块"))
        rows = held_out(scenario, manifest, progress).test
        batch = exports.inputs(runtime, rows[: exports.ROWS])
        _trace(module, batch, path)
        batches = [batch, {name: array[:1] for name, array in batch.items()}, *exports.others(runtime, rows, batch)]
        return exports.told([batch, *batches[2:]], exports.compared(runtime, lambda: _Opened(path, runtime.signature), batches))
    finally:
        runtime.close()


def _trace(module: Any, batch: Batch, path: Path) -> None:
    import torch

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # what the trace warns of, the comparison finds
            given = {name: torch.from_numpy(array) for name, array in batch.items()}
            torch.jit.trace(module.eval(), example_kwarg_inputs=given, check_trace=False).save(str(path))  # type: ignore[no-untyped-call]
    except Exception as fault:
        raise ScenariumError("SCN-3008", reason=f"{type(fault).__name__}: {str(fault).strip().partition(chr(10))[0]}") from fault


class _Opened:
    """The traced file as a forward."""

    def __init__(self, path: Path, signature: Signature) -> None:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated in torch, not in Triton
            self.module = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
        self.signature = signature

    def __call__(self, inputs: Batch) -> Batch:
        import torch

        with torch.inference_mode():
            found = self.module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        found = found if isinstance(found, tuple) else (found,)
        return {spec.name: value.numpy() for spec, value in zip(self.signature.outputs, found, strict=True)}
