"""Order, cache and prefetching."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

import runs
from scenarium.training import loader as module
from scenarium.training.loader import Loader

CPU = torch.device("cpu")


def make(*sets: str, split="train", augment=False) -> Loader:
    made = runs.scenario("model.rows=43", *sets, augment=augment)
    return Loader(made, made.config, {}, made.hook.signature(config=made.config, state={}), runs.data(made).train, CPU, split)


def same(a, b) -> bool:
    return all(x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x) for x, y in zip(a, b, strict=True))


def test_an_epoch_has_every_item_once_in_an_order_of_its_own():
    loader = make()
    assert loader.chunks == 6
    orders = [torch.cat([batch["points"] for batch in loader.epoch(epoch, range(6))]) for epoch in (0, 1, 0)]
    assert all(len(order.unique(dim=0)) == 43 for order in orders)
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])


@pytest.mark.parametrize("ragged", ["true", "false"])
def test_cached_batches_are_those_encoded_one_by_one(ragged):
    plain, cached = make(f"model.ragged={ragged}"), make(f"model.ragged={ragged}")
    cached.cache()
    assert (cached.cached is None) != (cached.stacked is None)
    assert (cached.stacked is not None) == (ragged == "false")
    cached.items = [None] * 43
    assert same(plain.epoch(3, [4, 5, 0, 6]), cached.epoch(3, [4, 5, 0, 6]))


def test_items_with_randomness_are_not_cached_and_depend_on_epoch_and_item_alone():
    loader = make(augment=True)
    loader.cache()
    assert loader.cached is loader.stacked is None
    assert same(loader.epoch(2, [1, 4]), [list(make(augment=True).epoch(2, range(6)))[index] for index in (1, 4)])
    assert not same(loader.epoch(2, [1]), make().epoch(2, [1]))


def test_validation_keeps_the_order_and_draws_nothing():
    loader = make(split="val", augment=True)
    points = torch.cat([batch["points"] for batch in loader.epoch(0, range(loader.chunks))])
    assert torch.equal(points, torch.tensor([row["points"][0] for row in loader.items]))


def test_too_little_memory_means_no_cache(monkeypatch):
    monkeypatch.setattr(module, "_free_memory", lambda: 4 * 43 * 8)
    loader = make()
    loader.cache()
    assert loader.cached is loader.stacked is None


def test_free_memory_is_plausible():
    assert 1 << 20 < module._free_memory() < 1 << 45


def test_prefetching_keeps_order_errors_and_ends():
    def numbers(stop):
        for index in range(stop):
            yield {"x": torch.tensor(index)}
        raise ValueError("broken item")

    seen = []
    with pytest.raises(ValueError, match="broken item"):
        seen += [int(batch["x"]) for batch in module._ahead(numbers(20))]
    ahead = module._ahead(numbers(10**9))
    assert int(next(ahead)["x"]) == 0
    began = time.monotonic()
    ahead.close()
    assert time.monotonic() - began < 2


def test_scalars_and_lists_become_tensors():
    loader = make()
    loader.cache()
    assert loader.stacked is not None
    assert loader.stacked["labels"].dtype == torch.int64
    assert loader.stacked["points"].numpy().dtype == np.float32
