"""The torch engine: the plugin's own module with the version's safetensors weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model

from scenarium.core.types import Batch, Signature

WEIGHTS = "model.safetensors"


class TorchEngine:
    """Runs ``module`` in inference mode on ``device``. ``module`` is open to plugins that need more than a forward."""

    def __init__(self, module: torch.nn.Module, signature: Signature, device: str) -> None:
        self.module = module.to(device).eval()
        self.signature = signature
        self.device = torch.device(device)

    def __call__(self, inputs: Batch) -> Batch:
        tensors = {spec.name: torch.from_numpy(np.ascontiguousarray(inputs[spec.name])).to(self.device) for spec in self.signature.inputs}
        with torch.inference_mode():
            outputs = self.module(**tensors)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {spec.name: _array(value) for spec, value in zip(self.signature.outputs, outputs, strict=True)}


def _array(value: torch.Tensor) -> np.ndarray:
    # NumPy has no bfloat16, and an answer in half precision gains nothing.
    return (value.float() if value.is_floating_point() else value).cpu().numpy()


def open(version: Path, signature: Signature, device: str, build: Callable[[], Any]) -> TorchEngine:
    """Build the module and read its weights."""
    module = build()
    load_model(module, version / WEIGHTS)
    return TorchEngine(module, signature, device)
