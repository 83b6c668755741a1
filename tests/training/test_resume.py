"""A run that was killed anywhere ends with the bits of one that was not."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import runs
from scenarium.training import checkpoint

CASES = [
    # dropout, accumulate, precision, augmentation drawn from the item's own generator
    pytest.param(0.2, 1, "fp32", True, id="dropout-augmented"),
    pytest.param(0.0, 1, "fp32", False, id="no-dropout"),
    pytest.param(0.2, 3, "bf16", False, id="dropout-accumulate-bf16"),
    pytest.param(0.2, 4, "fp16", False, id="dropout-accumulate-fp16"),
]


def killed(folder, *arguments: str) -> int:
    """Run the toy in a process of its own; its exit status."""
    return subprocess.run([sys.executable, runs.__file__, str(folder), *arguments], check=False, capture_output=True, timeout=120).returncode


@pytest.mark.slow
@pytest.mark.parametrize(("dropout", "accumulate", "precision", "augment"), CASES)
def test_killed_in_mid_epoch(tmp_path, dropout, accumulate, precision, augment):
    """SIGKILL in the forward of a random micro-batch of three epochs, checkpoints every 5 steps; no row is lost or repeated."""
    sets = [f"model.dropout={dropout}", f"train.accumulate={accumulate}", f"train.precision={precision}", "train.checkpoint_steps=5", "train.schedule=cosine"]
    calls = 3 * 45
    at = random.Random(f"{dropout}{accumulate}").randrange(calls // 4, calls - 5)
    flags = ["--augment"] if augment else []
    assert killed(tmp_path / "a", *sets, f"model.fault=kill:{at}", *flags) == -signal.SIGKILL
    state = checkpoint.load_last(tmp_path / "a" / "work")
    assert state is not None
    assert 0 < state["step"] <= at // accumulate
    assert not (tmp_path / "a" / "out" / "model.safetensors").exists()
    whole = runs.run(tmp_path / "b", runs.scenario(*sets, augment=augment), held_out=40)
    resumed = runs.run(tmp_path / "a", runs.scenario(*sets, augment=augment), held_out=40, resume=True)
    assert runs.difference(runs.weights(tmp_path / "a"), runs.weights(tmp_path / "b")) == 0.0
    for name in ("loss", "lr", "val_loss"):
        assert resumed.curves[name] == whole.curves[name]


def test_killed_after_the_last_step(tmp_path):
    """All steps done, the version not yet committed: resuming gives the best weights without another step."""
    made = runs.scenario("model.dropout=0.2")
    runs.run(tmp_path, made, held_out=40)
    first = runs.weights(tmp_path)
    (tmp_path / "out" / "model.safetensors").unlink()
    runs.run(tmp_path, runs.scenario("model.fault=kill:1"), held_out=40, resume=True)
    assert runs.difference(first, runs.weights(tmp_path)) == 0.0


def test_without_a_checkpoint_it_starts_anew_and_says_so(tmp_path):
    notes = []
    progress = type("Notes", (runs.Progress,), {"note": lambda self, text: notes.append(text)})()
    runs.run(tmp_path, runs.scenario("train.epochs=1"), resume=True, progress=progress)
    assert "there is no checkpoint" in notes[0]


def test_an_old_checkpoint_does_not_leak_into_a_new_run(tmp_path):
    runs.run(tmp_path / "a", runs.scenario("train.epochs=2"), held_out=40)
    before = runs.weights(tmp_path / "a")
    runs.run(tmp_path / "a", runs.scenario("train.epochs=2"), held_out=40)
    assert runs.difference(before, runs.weights(tmp_path / "a")) == 0.0


def test_random_state_is_put_back():
    checkpoint.seed_all(3)
    random.gauss(0, 1)  # leaves a second value behind
    state = checkpoint.random_state(torch.device("cpu"))

    def draw():
        return random.gauss(0, 1), random.random(), np.random.standard_normal(), torch.rand(3).tolist()

    first = draw()
    draw()
    checkpoint.set_random_state(state, torch.device("cpu"))
    assert draw() == first


WRITER = """
import os, signal, sys, time
from pathlib import Path
import torch
from scenarium.training import checkpoint
folder = Path(sys.argv[1])
torch.set_num_threads(1)
torn = written = 0
began = time.monotonic()
checkpoint.save_last(folder, {"step": -1, "tensor": torch.full((200_000,), -1.0)})
cost = time.monotonic() - began
for kill in range(25):
    child = os.fork()
    if not child:
        for step in range(10**6):
            checkpoint.save_last(folder, {"step": step, "tensor": torch.full((200_000,), float(step))})
    time.sleep(cost * (0.5 + kill / 8))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    state = checkpoint.load_last(folder)
    if state is not None:
        written += 1
        torn += not bool((state["tensor"] == state["step"]).all())
import json
print(json.dumps({"torn": torn, "written": written}))
"""


def test_a_kill_while_writing_tears_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], check=True, capture_output=True, text=True, timeout=120)
    found = json.loads(done.stdout)
    assert found["torn"] == 0
    assert found["written"] > 10


def test_a_checkpoint_runs_no_code(tmp_path):
    torch.save({"step": 1, "evil": subprocess.Popen}, tmp_path / checkpoint.LAST)
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        checkpoint.load_last(tmp_path)
