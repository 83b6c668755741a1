"""Fault: the loss follows a counter that a checkpoint does not hold."""

from __future__ import annotations

from healthy import *

calls = {"train": 0}


@hookimpl
def loss(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | int]:
    from torch.nn import functional

    calls["train"] += model.training
    weight = 1 / calls["train"] if model.training else 1
    return functional.cross_entropy(model(letters=batch["letters"]), batch["labels"], reduction="sum") * weight, len(batch["labels"])
