"""What runs a version's forward: torch, ONNX Runtime, OpenVINO or Triton, all as batch of arrays → batch of arrays.

Each engine imports its library when it is opened, so a worker that serves an export never imports torch.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from scenarium.core.errors import ScenariumError
from scenarium.core.types import Batch, Signature

ENGINES = {
    "torch": "scenarium.core.engines.torch_engine",
    "onnx": "scenarium.core.engines.onnx_engine",
    "openvino": "scenarium.core.engines.openvino_engine",
    "openvino:bf16": "scenarium.core.engines.openvino_engine:open_bf16",
    "triton": "scenarium.core.engines.triton_engine",
}
"""Engine name to the module whose ``open`` makes it, or to the function that stands behind the colon."""


class Engine(Protocol):
    """A loaded forward."""

    def __call__(self, inputs: Batch) -> Batch:
        """Run the forward on arrays named and typed as the signature says; outputs by name."""
        ...


def open_engine(name: str, version: Path, signature: Signature, device: str, build: Callable[[], Any]) -> Engine:
    """Open ``version`` with the engine called ``name``. ``build`` makes the untrained module, for the torch engine.

    Raises:
        ScenariumError: SCN-6001 (no such engine), SCN-6002 (its library is missing), SCN-6003 (the version has no export for it).
    """
    if name not in ENGINES:
        raise ScenariumError("SCN-6001", engine=name, nearest=(difflib.get_close_matches(name, ENGINES, 1) or ["torch"])[0], known=", ".join(ENGINES))
    try:
        module, _, function = ENGINES[name].partition(":")
        engine: Engine = getattr(importlib.import_module(module), function or "open")(version, signature, device, build)
    except ModuleNotFoundError as fault:
        raise ScenariumError("SCN-6002", engine=name, module=fault.name, extra=extra(name)) from fault
    return engine


def extra(name: str) -> str:
    """The extra of the distribution ``scenarium`` that brings an engine's library."""
    return "train" if name == "torch" else name.partition(":")[0]
