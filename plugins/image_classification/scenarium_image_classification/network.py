"""The network: a backbone with the scenario's classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from scenarium.training import backbones


class Classifier(nn.Module):
    """Normalised pictures ``[B, 3, S, S]`` float32 to logits ``[B, classes]``."""

    def __init__(self, backbone: str, classes: int, size: int) -> None:
        super().__init__()
        self.name = backbone
        self.body = backbones.build(backbone, classes, size)
        self.frozen = False

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(image)
        return logits

    def start_from(self, pretrained: str, accepted: Sequence[str]) -> None:
        """Read pretrained weights: see ``scenarium.training.backbones.read_weights``."""
        backbones.load_weights(self.body, backbones.read_weights(self.name, pretrained, accepted), self.name)

    def freeze_body(self) -> None:
        """Let only the last layer learn."""
        self.frozen = True
        self.body.requires_grad_(False)
        backbones.head(self.body).requires_grad_(True)

    def train(self, mode: bool = True) -> Classifier:
        # A frozen backbone keeps its batch statistics too, else they drift away from its weights.
        super().train(mode and not self.frozen)
        return self
