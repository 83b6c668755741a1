"""Fault: load makes the same untrained model each time."""

from __future__ import annotations

import healthy
from healthy import *


@hookimpl
def load(state: Mapping[str, Any], signature: Signature) -> Any:
    import torch

    from scenarium.core.engines.torch_engine import TorchEngine

    torch.manual_seed(7)
    return TorchEngine(healthy.model(state), signature, "cpu")
