"""The OpenVINO engine: serves ``model.onnx`` on the processor without torch. A file in int8 (QDQ) runs in int8; what is left computes in fp32 or bf16.

Properties: OpenVINO documentation, "CPU Device".
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from scenarium.core.errors import ScenariumError
from scenarium.core.exports import EXPORT
from scenarium.core.types import Batch, Signature


class OpenVinoEngine:
    """One compiled model, which runs one batch at a time."""

    def __init__(self, path: Path, signature: Signature, bf16: bool) -> None:
        core = openvino.Core()
        properties: dict[str, Any] = {
            # On its own it would take bf16 wherever the processor has it, and answers would differ between machines.
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 and has_bf16(core) else "f32",
            "NUM_STREAMS": 1,
            # The supervisor deals threads to workers; pinned ones of two workers would share a core and leave another idle.
            "ENABLE_CPU_PINNING": False,
        }
        if threads := int(os.environ.get("SCENARIUM_THREADS", "0")):
            properties["INFERENCE_NUM_THREADS"] = threads
        self.request = core.compile_model(path, "CPU", properties).create_infer_request()
        self.signature = signature
        self._lock = threading.Lock()

    def __call__(self, inputs: Batch) -> Batch:
        feed = {spec.name: np.asarray(inputs[spec.name], order="C") for spec in self.signature.inputs}
        with self._lock:
            found = self.request.infer(feed, share_inputs=True)
            return {spec.name: found[spec.name] for spec in self.signature.outputs}


def has_bf16(core: openvino.Core | None = None) -> bool:
    """Whether the processor multiplies bf16 natively; elsewhere it would only be slower."""
    return "BF16" in (core or openvino.Core()).get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def open(version: Path, signature: Signature, device: str, build: Callable[[], Any], bf16: bool = False) -> OpenVinoEngine:
    """Open the version's ONNX export. It runs on the processor, whatever ``device`` says."""
    path = version / EXPORT
    if not path.is_file():
        raise ScenariumError("SCN-6003", engine="openvino", file=path)
    return OpenVinoEngine(path, signature, bf16)


def open_bf16(version: Path, signature: Signature, device: str, build: Callable[[], Any]) -> OpenVinoEngine:
    """As ``open``, computing in bf16 where the processor does."""
    return open(version, signature, device, build, bf16=True)
