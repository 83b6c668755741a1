"""The healthy twin's network."""

from __future__ import annotations

import torch


class Average(torch.nn.Module):
    """Mean of the letters' vectors, without the padding, through a linear layer."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.vectors = torch.nn.Embedding(98, 8)
        self.head = torch.nn.Linear(8, labels)

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        present = (letters > 0).unsqueeze(-1).to(self.vectors.weight.dtype)
        mean = (self.vectors(letters) * present).sum(1) / present.sum(1).clamp_min(1)
        return self.head(mean)
