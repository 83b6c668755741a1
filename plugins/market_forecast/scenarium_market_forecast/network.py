"""The network: a volatility forecast with learned corrections, as a pure tensor function."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor, nn

SCALES = (5, 21, 63)
"""Windows of the realized volatility in steps: a week, a month, a quarter of trading days (the HAR model's idea, Corsi 2009)."""


class QuantileForecaster(nn.Module):
    """Quantiles of the cumulative log return for every horizon.

    A random walk whose volatility is RiskMetrics' exponentially weighted one is the starting point; a small network moves its
    scale, its location and the distances between its quantiles. The last layer starts at zero, so training starts from the
    simple forecast and departs from it only where that lowers the loss. Distances are positive: quantiles never cross.
    """

    def __init__(self, horizon: int, levels: Sequence[float], channels: int, hidden: int, dropout: float, decay: float) -> None:
        super().__init__()
        normal = torch.tensor([NormalDist().inv_cdf(level) for level in levels], dtype=torch.float32)
        self.middle = len(levels) // 2
        self.gaps: Tensor
        self.steps: Tensor
        self.register_buffer("gaps", normal.diff())
        self.register_buffer("steps", torch.arange(1, horizon + 1, dtype=torch.float32).sqrt())
        self.decay = decay
        self.horizon, self.count = horizon, len(levels)
        features = len(SCALES) + 2 + 10 + (channels - 1)
        self.body = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(dropout))
        self.head = nn.Linear(hidden, horizon * (self.count + 1))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, returns: Tensor) -> Tensor:
        """``returns``: float32 [N, context, channels], channel 0 log returns, the others standardised covariates. Returns [N, H, Q]."""
        steps = returns[..., 0]
        age = torch.arange(steps.shape[1] - 1, -1, -1, dtype=steps.dtype, device=steps.device)
        weights = torch.pow(torch.tensor(self.decay, dtype=steps.dtype, device=steps.device), age)
        sigma = ((steps**2 * weights).sum(1) / weights.sum()).sqrt().clamp(min=1e-6)
        unit = sigma[:, None]
        realized = [(steps[:, -n:] ** 2).mean(1, keepdim=True).sqrt().clamp(min=1e-6) / unit for n in SCALES]
        recent = (steps[:, -10:] / unit).clamp(-6, 6)
        downside = (steps.clamp(max=0) ** 2 * weights).sum(1, keepdim=True) / ((steps**2 * weights).sum(1, keepdim=True) + 1e-12)
        features = torch.cat([torch.log(torch.cat(realized, 1)), torch.log(unit) + 4.5, downside, recent, returns[:, -1, 1:]], 1)
        raw = self.head(self.body(features)).reshape(-1, self.horizon, self.count + 1)
        scale = unit[..., None] * self.steps[:, None] * torch.exp(raw[..., :1])
        gaps = self.gaps * torch.exp(raw[..., 2:])
        below = -gaps[..., : self.middle].flip(-1).cumsum(-1).flip(-1)
        above = gaps[..., self.middle :].cumsum(-1)
        location = raw[..., 1:2]
        return scale * torch.cat([below + location, location, above + location], -1)


def pinball_loss(quantiles: Tensor, levels: Sequence[float], truth: Tensor) -> Tensor:
    """Sum over the batch of the quantile loss, in units of each horizon's typical return so that no horizon drowns another.

    ``quantiles``: [N, H, Q], ``truth``: [N, H].
    """
    error = truth[..., None] - quantiles
    level = torch.tensor(levels, dtype=error.dtype, device=error.device)
    steps = torch.arange(1, truth.shape[1] + 1, dtype=error.dtype, device=error.device).sqrt()
    return (torch.maximum(level * error, (level - 1) * error).mean(-1) / steps).mean(-1).sum() * 100
