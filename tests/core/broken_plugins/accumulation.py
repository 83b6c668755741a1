"""Fault: loss returns a mean instead of (sum, count)."""

from __future__ import annotations

from healthy import *


@hookimpl
def loss(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | int]:
    from torch.nn import functional

    return functional.cross_entropy(model(letters=batch["letters"]), batch["labels"]), 1
