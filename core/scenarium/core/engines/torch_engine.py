"""The torch engine: the plugin's own module with the version's safetensors weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, load_model

from scenarium.core.devices import DeviceMemory
from scenarium.core.types import Batch, Signature

WEIGHTS = "model.safetensors"


class TorchEngine:
    """Runs ``module`` in inference mode on ``device``. ``module`` is open to plugins that need more than a forward."""

    def __init__(self, module: torch.nn.Module, signature: Signature, device: str) -> None:
        self.module = module.to(device).eval()
        self.signature = signature
        self.device = torch.device(device)

    def device_memory(self) -> DeviceMemory | None:
        """What torch's allocator holds on its GPU, and how full that is; None on the processor."""
        if self.device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info(self.device)
        return DeviceMemory(str(self.device), torch.cuda.memory_reserved(self.device), free, total)

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
    _load(module, version / WEIGHTS)
    return TorchEngine(module, signature, device)


def _load(module: torch.nn.Module, path: Path) -> None:
    """Put the stored weights into ``module`` without a copy: the tensors stay mapped from the file, so what no forward reads takes
    no memory (most rows of an embedding), and the workers of one version share the rest.
    """
    own = module.state_dict(keep_vars=True)  # the parameters themselves, so tied ones stay tied
    stored = load_file(path)
    fits = all(name in own and own[name].shape == tensor.shape and own[name].dtype == tensor.dtype for name, tensor in stored.items())
    if fits and {id(tensor) for tensor in own.values()} == {id(own[name]) for name in stored}:
        for name, tensor in stored.items():
            own[name].data = tensor
    else:
        load_model(module, path)  # converts, knows tensors that share memory in other ways, and says what is missing
