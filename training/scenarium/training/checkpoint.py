"""Checkpoints that a killed process cannot tear: written beside, synced, renamed. Loaded with ``weights_only``, so no code runs."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors.torch import save_model

LAST = "last.pt"
BEST = "best.safetensors"
FORMAT = 1

State: TypeAlias = dict[str, Any]


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` write a file, then put it at ``path`` in one step: a reader sees the old one or the new one, whole."""
    part = path.with_name(f".{path.name}.part")
    save(part)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_last(folder: Path, state: State) -> None:
    """Write what a run needs to go on."""
    write(folder / LAST, lambda path: torch.save({"format": FORMAT, **state}, path))


def load_last(folder: Path) -> State | None:
    """The last checkpoint, None where there is none."""
    path = folder / LAST
    if not path.is_file():
        return None
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state


def save_weights(path: Path, module: torch.nn.Module) -> None:
    """Write a module's weights as safetensors; tensors that share storage are stored once."""
    write(path, lambda part: save_model(module, str(part)))


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Every global random generator of this process, as tensors of one shape a name, so that ranks can exchange them."""
    _, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    found = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([float("nan") if gauss is None else gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(legacy[1].astype(np.int64)),
        "numpy_at": torch.tensor(legacy[2:4], dtype=torch.int64),
        "numpy_gauss": torch.tensor([legacy[4]], dtype=torch.float64),
    }
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put back what ``random_state`` returned."""
    gauss = float(state["python_gauss"])
    random.setstate((3, tuple(state["python"].tolist()), None if np.isnan(gauss) else gauss))
    position, has_gauss = state["numpy_at"].tolist()
    np.random.set_state(("MT19937", state["numpy"].numpy().astype(np.uint32), position, has_gauss, float(state["numpy_gauss"])))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_all(seed: int) -> None:
    """Seed every global generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
