"""Rates against those of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import optimization as transformers

from scenarium.core.config import TrainConfig
from scenarium.training import schedule


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 40), (7, 40), (40, 40), (1, 1)])
def test_equals_transformers(kind, warmup, total):
    make = {
        "cosine": lambda o: transformers.get_cosine_schedule_with_warmup(o, warmup, total),
        "linear": lambda o: transformers.get_linear_schedule_with_warmup(o, warmup, total),
        "constant": lambda o: transformers.get_constant_schedule_with_warmup(o, warmup),
    }[kind]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = make(optimizer)
    for step in range(total):
        assert optimizer.param_groups[0]["lr"] == 0.3 * schedule.factor(kind, step, warmup, total)
        optimizer.step()
        theirs.step()


def test_warmup_is_a_share_or_a_number():
    assert schedule.warmup_steps(TrainConfig(warmup=0.05), 90) == 5
    assert schedule.warmup_steps(TrainConfig(warmup=0.0), 90) == 0
    assert schedule.warmup_steps(TrainConfig(warmup=12), 90) == 12
