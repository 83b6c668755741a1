"""Two processes over gloo, started as ``--nproc 2`` starts them."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from torch.distributed import TCPStore

import runs
from scenarium.core import datasets
from scenarium.core.errors import ScenariumError
from scenarium.core.progress import Progress
from scenarium.training import checkpoint
from scenarium.training.distributed import Group

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")]

MASKED = ("model.rows=300", "model.masked=0.33", "model.ragged=true", "model.sgd=true", "train.lr=0.1", "train.epochs=2")


def trained(folder, *sets, resume=False, progress=None):
    made = runs.scenario(*sets)
    return runs.run(folder, made, rows=datasets.prepare(made, Progress()), resume=resume, progress=progress)


def test_two_ranks_are_one_process_with_the_big_batch(tmp_path):
    """Ragged rows, a third of the labels masked, a last group that one rank runs empty in."""
    two = trained(tmp_path / "two", *MASKED, "train.nproc=2", "train.accumulate=2", "train.batch_size=7")
    one = trained(tmp_path / "one", *MASKED, "train.batch_size=28")
    assert runs.difference(runs.weights(tmp_path / "two"), runs.weights(tmp_path / "one")) < 1e-6
    assert [step for step, _ in two.curves["loss"]] == [step for step, _ in one.curves["loss"]]
    assert two.curves["val_loss"] == [(step, pytest.approx(value, rel=1e-5)) for step, value in one.curves["val_loss"]]


def test_a_killed_rank_starts_again_from_the_checkpoint(tmp_path):
    """The fault is counted in calls of one process, so the second start, which resumes at step 10, passes it."""
    sets = ("model.dropout=0.2", "train.nproc=2", "train.epochs=1", "train.checkpoint_steps=5")
    trained(tmp_path / "a", *sets, "model.fault=kill:13")
    trained(tmp_path / "b", *sets)
    assert runs.difference(runs.weights(tmp_path / "a"), runs.weights(tmp_path / "b")) == 0.0


def test_a_restart_has_store_keys_of_its_own(monkeypatch):
    """The agent's store outlives its ranks. A rank that reads a dead peer's address is refused, or waits for a call that never comes."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    keys = [store.num_keys()]
    own = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "TORCHELASTIC_USE_AGENT_STORE": True}
    for attempt in range(2):
        for name, value in {**own, "MASTER_ADDR": "localhost", "MASTER_PORT": store.port, "TORCHELASTIC_RESTART_COUNT": attempt}.items():
            monkeypatch.setenv(name, str(value))
        with Group.join() as group:
            assert group.world == 1
        keys.append(store.num_keys())
    assert keys[0] < keys[1] < keys[2]


def test_an_error_of_a_rank_is_told_once_and_clearly(tmp_path, capfd):
    with pytest.raises(ScenariumError) as caught:
        trained(tmp_path, "train.nproc=2", "train.epochs=1", "model.fault=nan:3")
    assert caught.value.code == "SCN-3002"
    assert "step 3" in caught.value.title()
    shown = capfd.readouterr()
    assert "Traceback" not in shown.out + shown.err


def test_a_signal_stops_all_ranks_with_a_checkpoint(tmp_path):
    started = threading.Event()

    class Started(Progress):
        def advance(self, done, **values):
            if done:
                started.set()

    def stop():
        started.wait(60)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(ScenariumError) as caught:
        trained(tmp_path, "train.nproc=2", "train.epochs=100000", progress=Started())
    assert caught.value.code == "SCN-3004"
    assert signal.getsignal(signal.SIGTERM) is before
    state = checkpoint.load_last(tmp_path / "work")
    assert state is not None
    assert state["step"] > 0
    assert len(state["random"]) == 2
