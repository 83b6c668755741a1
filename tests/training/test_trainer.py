"""The loop: bits, accumulation, faults. Resuming has its own file, ranks too."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from torch.nn import functional

import runs
from scenarium.core.errors import ScenariumError
from scenarium.core.progress import Progress
from scenarium.core.types import Data


def plain_loop(made, rows: Data, epochs: int, batch: int) -> dict[str, torch.Tensor]:
    """What anyone would write by hand: mean cross entropy, AdamW, the same order."""
    torch.manual_seed(0)
    net = made.implementation.Net(made.config.model.dropout)
    weights = list(net.parameters())
    decayed = [{"params": [w for w in weights if w.ndim > 1], "weight_decay": 0.01}, {"params": [w for w in weights if w.ndim == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(decayed, lr=0.01, fused=True)
    points = torch.tensor([row["points"][0] for row in rows.train])
    labels = torch.tensor([row["labels"][0] for row in rows.train])
    for epoch in range(epochs):
        order = torch.from_numpy(np.random.default_rng((0, epoch)).permutation(len(points)))
        for part in order.split(batch):
            optimizer.zero_grad()
            functional.cross_entropy(net(points[part]), labels[part]).backward()
            optimizer.step()
    return net.state_dict()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_bits_of_a_plain_loop(tmp_path, dropout):
    made = runs.scenario(f"model.dropout={dropout}", "train.epochs=2")
    rows = runs.data(made)
    runs.run(tmp_path, made)
    assert runs.difference(runs.weights(tmp_path), plain_loop(made, rows, 2, 8)) == 0.0


@pytest.mark.parametrize(("rows", "masked"), [(192, 0.0), (221, 0.0), (212, 0.0), (192, 0.33)])
@pytest.mark.parametrize("ragged", [False, True])
def test_accumulation_is_the_big_batch(tmp_path, rows, masked, ragged):
    """Four micro-batches of 8 (the last group ragged) against one of 32, by plain SGD."""
    common = ["model.sgd=true", "train.lr=0.1", "train.epochs=1", f"model.rows={rows}", f"model.masked={masked}", f"model.ragged={str(ragged).lower()}"]
    runs.run(tmp_path / "small", runs.scenario(*common, "train.accumulate=4"))
    runs.run(tmp_path / "big", runs.scenario(*common, "train.batch_size=32"))
    runs.run(tmp_path / "none", runs.scenario(*common, "train.batch_size=32", "train.lr=1e-12"))
    big = runs.weights(tmp_path / "big")
    assert runs.difference(runs.weights(tmp_path / "small"), big) < 1e-7
    assert runs.difference(runs.weights(tmp_path / "none"), big) > 1e-2, "the step must be large for the comparison to mean anything"


def test_a_batch_without_any_target_changes_nothing_but_is_no_fault(tmp_path):
    made = runs.scenario("model.masked=1.0", "model.sgd=true", "train.epochs=1", "train.accumulate=2")
    runs.run(tmp_path, made)
    torch.manual_seed(0)
    assert runs.difference(runs.weights(tmp_path), made.implementation.Net(0.0).state_dict()) == 0.0


def test_clipping_bounds_the_step(tmp_path):
    runs.run(tmp_path, runs.scenario("model.sgd=true", "train.lr=1.0", "train.clip=0.001", "train.max_steps=1", "model.rows=64"))
    torch.manual_seed(0)
    start = runs.scenario().implementation.Net(0.0).state_dict()
    moved = sum(float((tensor - start[name]).square().sum()) for name, tensor in runs.weights(tmp_path).items()) ** 0.5
    assert moved == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns(tmp_path, precision):
    job = runs.run(tmp_path, runs.scenario(f"train.precision={precision}", "train.epochs=3"), held_out=40)
    losses = [value for _, value in job.curves["val_loss"]]
    assert losses[-1] < 0.7 * np.log(10)
    assert all(tensor.dtype == torch.float32 for tensor in runs.weights(tmp_path).values())


def test_a_loss_that_is_not_finite_names_the_step(tmp_path):
    with pytest.raises(ScenariumError) as caught:
        runs.run(tmp_path, runs.scenario("model.fault=nan:7"))
    assert caught.value.code == "SCN-3002"
    assert "step 7" in caught.value.title()
    assert "0.01" in caught.value.title()
    assert "train.lr=0.001" in caught.value.hint()
    assert "第 7 步" in caught.value.title("zh")


def test_out_of_memory_names_the_settings_that_help(tmp_path):
    with pytest.raises(ScenariumError) as caught:
        runs.run(tmp_path, runs.scenario("model.fault=oom:3"))
    assert caught.value.code == "SCN-3003"
    assert "train.batch_size=4 --set train.accumulate=2" in caught.value.hint()


def test_nothing_to_train_on(tmp_path):
    made = runs.scenario()
    with pytest.raises(ScenariumError) as caught:
        runs.run(tmp_path, made, rows=Data([], [], [], "generated", {}))
    assert caught.value.code == "SCN-3006"
    assert caught.value.title() == "Scenario 'toy' cannot be trained: there is nothing to train on."


def test_patience_stops_and_the_best_weights_are_kept(tmp_path):
    """Labels of the held-out rows are wrong, so that validation gets worse as training gets better."""
    made = runs.scenario("train.epochs=30", "train.patience=2", "train.lr=0.05")
    rows = runs.data(made, 40)
    rows.val = [{**row, "labels": [(row["labels"][0] + 1) % 10]} for row in rows.val]
    job = runs.run(tmp_path, made, rows=rows)
    losses = [value for _, value in job.curves["val_loss"]]
    best = int(np.argmin(losses))
    assert len(losses) == best + 3 < 30
    net = made.implementation.Net(0.0)
    net.load_state_dict(runs.weights(tmp_path))
    points, labels = (torch.tensor([row[name][0] for row in rows.val]) for name in ("points", "labels"))
    assert functional.cross_entropy(net(points), labels).item() == pytest.approx(losses[best], rel=1e-5)


def test_a_signal_saves_and_says_how_to_go_on(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ScenariumError) as caught:
        runs.run(tmp_path / "a", runs.scenario("model.fault=term:33", "model.dropout=0.2"))
    assert caught.value.code == "SCN-3004"
    assert "step 33 of" in caught.value.title()
    assert "--resume" in caught.value.hint()
    assert signal.getsignal(signal.SIGTERM) is before
    runs.run(tmp_path / "a", runs.scenario("model.dropout=0.2"), resume=True)
    runs.run(tmp_path / "b", runs.scenario("model.dropout=0.2"))
    assert runs.difference(runs.weights(tmp_path / "a"), runs.weights(tmp_path / "b")) == 0.0


def test_progress_and_curves(tmp_path):
    class Seen(Progress):
        def __init__(self):
            self.notes, self.done, self.values, self.ended = [], 0, {}, False

        def note(self, text):
            self.notes.append(text)

        def start(self, what, total=None):
            self.total = total

        def advance(self, done, **values):
            self.done += done
            self.values = values

        def finish(self):
            self.ended = True

    seen = Seen()
    job = runs.run(tmp_path, runs.scenario("train.epochs=2", "train.schedule=cosine", "train.warmup=0.1"), held_out=40, progress=seen)
    assert seen.total == seen.done == 90
    assert seen.ended
    assert set(seen.values) == {"loss", "lr", "samples_per_s", "val_loss"}
    assert seen.notes[-1] == "cpu, fp32: 360 items, 90 steps of 8 items"
    assert [step for step, _ in job.curves["val_loss"]] == [45, 90]
    assert [step for step, _ in job.curves["loss"]] == list(range(1, 91))
    rates = dict(job.curves["lr"])
    assert rates[1] == 0.0
    assert max(rates.values()) == pytest.approx(0.01)
    assert all(value > 0 for _, value in job.curves["samples_per_s"])


def test_the_second_signal_acts_as_ever(tmp_path):
    made = runs.scenario("model.fault=term:2", "train.epochs=1000")
    calls = []
    signal.signal(signal.SIGTERM, lambda *_: calls.append("second"))
    try:
        with pytest.raises(ScenariumError):
            runs.run(tmp_path, made)
        os.kill(os.getpid(), signal.SIGTERM)
        assert calls == ["second"]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
