"""Learning rate over the optimizer steps: linear warm-up, then cosine, linear or constant."""

from __future__ import annotations

import math

from scenarium.core.config import TrainConfig


def warmup_steps(config: TrainConfig, total: int) -> int:
    """Steps of the linear warm-up: ``config.warmup`` is a share of ``total`` below 1 (rounded up), else a number of steps."""
    return math.ceil(total * config.warmup) if config.warmup < 1 else int(config.warmup)


def factor(kind: str, step: int, warmup: int, total: int) -> float:
    """What the base rate is multiplied with at optimizer step ``step`` (0 is the first).

    Cosine and linear equal ``get_cosine_schedule_with_warmup`` and ``get_linear_schedule_with_warmup`` of transformers
    (cosine: Loshchilov and Hutter, SGDR, arXiv:1608.03983, one half period, no restart).
    """
    if step < warmup:
        return step / max(1, warmup)
    if kind == "constant":
        return 1.0
    left = max(1, total - warmup)
    if kind == "linear":
        return max(0.0, (total - step) / left)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * ((step - warmup) / left))))
