"""The sum of a token's rows: the fused kernel of training and what an export can express are the same."""

from __future__ import annotations

import torch

from scenarium.training.bags import added


def test_training_and_export_sum_the_same_rows() -> None:
    table = torch.nn.Embedding(50, 6)
    ids, weights = torch.randint(0, 50, (2, 5, 4)), torch.rand(2, 5, 4)
    torch.testing.assert_close(added(table.train(), ids, weights), added(table.eval(), ids, weights))
