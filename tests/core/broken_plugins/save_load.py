"""Fault: the forward uses a buffer that is learned and not saved."""

from __future__ import annotations

from healthy import *


@hookimpl
def model(state: Mapping[str, Any]) -> torch.nn.Module:
    import torch

    import healthy_net

    class Centred(healthy_net.Average):
        def __init__(self, labels: int) -> None:
            super().__init__(labels)
            self.register_buffer("centre", torch.zeros(labels), persistent=False)

        def forward(self, letters: torch.Tensor) -> torch.Tensor:
            logits = super().forward(letters)
            if self.training:
                self.centre = self.centre + logits.detach().sum(0)
            return logits + self.centre

    return Centred(len(state["labels"]))


@hookimpl
def export() -> Sequence[str]:
    return []
