"""How the trainer's tests start a run; also a program: ``python runs.py FOLDER [--resume] [--augment] key=value…``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from scenarium.core.config import Settings
from scenarium.core.hookspecs import hookimpl
from scenarium.core.pipeline import Run
from scenarium.core.progress import Progress
from scenarium.core.registry import Plugin, Registry, Scenario
from scenarium.core.types import Data
from scenarium.training import plugin as defaults
from scenarium.training.trainer import fit

TOY = Plugin("toy", str(Path(__file__).with_name("toy.py")), "toy", "0.1.0")
SETTINGS = ("train.threads=1", "train.clip=null", "train.schedule=constant", "train.warmup=0", "train.batch_size=8", "train.lr=0.01")


class Augmented:
    """An extension that shifts every training point by noise of the item's own generator."""

    @hookimpl(wrapper=True)
    def encode(self, rng: np.random.Generator | None) -> Any:
        encoded = yield
        noise = 0 if rng is None else rng.normal(size=8).astype(np.float32)
        return {**encoded, "points": encoded["points"] + noise}


def scenario(*sets: str, augment: bool = False) -> Scenario:
    """The toy scenario with ``sets`` over the tests' own settings."""
    settings = Settings.read(environ={}, sets=(*SETTINGS, *sets), scenario="toy")
    made = Registry(settings, {"toy": TOY}).scenario("toy")
    return Scenario(made.name, made.plugin, settings, {"training": defaults, **({"augment": Augmented()} if augment else {})})


def data(made: Scenario, held_out: int = 0) -> Data:
    """The scenario's generated rows; the last ``held_out`` are for validation."""
    rows = list(made.hook.sources(config=made.config)[0].read([]))
    middle = len(rows) - held_out
    return Data(rows[:middle], rows[middle:], [], "generated", {"sha256": str(len(rows))})


def run(folder: Path, made: Scenario, *, resume: bool = False, held_out: int = 0, progress: Progress | None = None, rows: Data | None = None) -> Run:
    """Train and return the run; its weights are in ``folder / "out"``."""
    job = Run(made, folder / "out", folder / "work", {}, resume, progress or Progress())
    job.out.mkdir(parents=True, exist_ok=True)
    job.work.mkdir(parents=True, exist_ok=True)
    fit(made.config, rows or data(made, held_out), job)
    return job


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a run wrote."""
    return load_file(folder / "out" / "model.safetensors")


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference of two sets of weights."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


if __name__ == "__main__":
    flags = {argument for argument in sys.argv[2:] if argument.startswith("--")}
    made = scenario(*(argument for argument in sys.argv[2:] if argument not in flags), augment="--augment" in flags)
    run(Path(sys.argv[1]), made, resume="--resume" in flags, held_out=40)
