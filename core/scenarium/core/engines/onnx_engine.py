"""The ONNX Runtime engine: serves ``model.onnx`` without torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from scenarium.core.errors import ScenariumError
from scenarium.core.types import Batch, Signature

EXPORT = "model.onnx"


class OnnxEngine:
    """One ONNX Runtime session."""

    def __init__(self, path: Path, signature: Signature, device: str) -> None:
        options = onnxruntime.SessionOptions()
        # The supervisor deals threads to workers; a spinning pool would take the neighbours' cores while it waits.
        options.intra_op_num_threads = int(os.environ.get("SCENARIUM_THREADS", "0"))
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if device.startswith("cuda") else ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(path, options, providers=providers)
        self.signature = signature

    def __call__(self, inputs: Batch) -> Batch:
        feed = {spec.name: np.asarray(inputs[spec.name], order="C") for spec in self.signature.inputs}
        names = [spec.name for spec in self.signature.outputs]
        return dict(zip(names, self.session.run(names, feed), strict=True))


def open(version: Path, signature: Signature, device: str, build: Callable[[], Any]) -> OnnxEngine:
    """Open the version's ONNX export."""
    path = version / EXPORT
    if not path.is_file():
        raise ScenariumError("SCN-6003", engine="onnx", file=path)
    return OnnxEngine(path, signature, device)
