"""The network: every token gives its own evidence for each label, and the logits are their sum.

So the explanation is exact: what is shown as a word's weight is what the word added. The same thought for images: W. Brendel and
M. Bethge, "Approximating CNNs with Bag-of-local-Features models", ICLR 2019. Hashed n-grams: A. Joulin et al., "Bag of Tricks
for Efficient Text Classification", EACL 2017. Gated convolutions: Y. Dauphin et al., ICML 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from scenarium.training.bags import added
from scenarium_fraud_text.features import DEEP, shares


class Evidence(nn.Module):
    """Hashed n-grams → wide (one weight a label) plus deep (embedding, gated convolutions, attention) evidence a token.

    Gradients train the deep part alone; the wide part is zero until ``join``.
    """

    def __init__(self, labels: int, size: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.wide = nn.Embedding(size, labels).requires_grad_(False)
        self.rarity = nn.Embedding(size, 1).requires_grad_(False)
        self.deep = nn.Embedding(size, width)
        nn.init.zeros_(self.wide.weight)
        nn.init.ones_(self.rarity.weight)
        nn.init.normal_(self.deep.weight, std=0.1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers + 1))
        self.convolutions = nn.ModuleList(nn.Conv1d(width, 2 * width, 3, padding=1) for _ in range(layers))
        self.attention = nn.Linear(width, 1)
        self.labels = nn.Linear(width, labels, bias=False)
        self.bias = nn.Parameter(torch.zeros(labels))

    def forward(self, ids: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """``ids`` int32 [rows, tokens, kinds] (0 = none), ``shares`` float32 of that shape (0 = none; an n-gram's places sum to 1)
        → logits [rows, labels], evidence [rows, tokens, labels].

        ``logits = bias + evidence.sum(1)`` exactly. Rows of zeros add nothing, so padding changes no answer.
        """
        seen = (ids > 0).to(shares.dtype)
        mask = seen[..., :1]
        # Whole n-grams are dropped while training, so that no single one decides.
        kept = functional.dropout(seen[..., :DEEP], self.dropout, self.training)
        x = self.norms[0](added(self.deep, ids[..., :DEEP], kept)) * mask
        for convolution, norm in zip(self.convolutions, list(self.norms)[1:], strict=True):
            value, gate = convolution(x.transpose(1, 2)).transpose(1, 2).chunk(2, -1)
            x = norm(x + functional.dropout(value * torch.sigmoid(gate), self.dropout, self.training)) * mask
        share = torch.softmax(self.attention(x).float() + (mask - 1) * 1e4, 1)
        evidence = share * self.labels(x) * mask
        if not self.training:
            evidence = evidence + self._wide(ids, shares) * mask
        return self.bias + evidence.sum(1), evidence

    def _wide(self, ids: Tensor, shares: Tensor) -> Tensor:
        """What each token adds to the linear model: TF-IDF of its n-grams, the text's vector scaled to length 1, times the weights."""
        rarity = self.rarity(ids).squeeze(-1)
        value = (1 - shares.clamp(min=1e-6).log()) * rarity * (ids > 0)
        length = (shares * value.square()).sum((1, 2), keepdim=True).clamp(min=1e-12).sqrt()
        return added(self.wide, ids, shares * value / length)

    def answers(self, items: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        """Logits of whole texts (``ids`` of each), ``float64 [items, labels]``."""
        with torch.inference_mode():
            found = [self(torch.from_numpy(item["ids"])[None], torch.from_numpy(shares(item["ids"]))[None])[0] for item in items]
        return torch.cat(found).double().numpy()

    @torch.no_grad()
    def join(self, weights: np.ndarray, bias: np.ndarray, rarity: np.ndarray, wide: float, deep: float) -> None:
        """Add a linear model times ``wide`` to the deep part times ``deep``.

        Args:
            weights: ``[labels, buckets]``.
            bias: ``[labels]``.
            rarity: inverse document frequency of each bucket, ``[buckets]``.
        """
        self.rarity.weight[:, 0] = torch.from_numpy(rarity)
        self.wide.weight.copy_(torch.from_numpy(wide * weights.T))
        self.labels.weight *= deep
        self.bias.copy_(deep * self.bias + torch.from_numpy(wide * bias))
