"""The torch engine: weights stay mapped from the version's file; what does not fit is converted or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scenarium.core.engines import torch_engine
from scenarium.core.types import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "float32", (8,)),), (TensorSpec("y", "float32", (8,)),))


class Tied(torch.nn.Module):
    """Two layers that are one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 8)
        self.second = torch.nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.rand(8))

    def forward(self, x):
        return self.second(self.first(x)) * self.scale


def stored(module: torch.nn.Module, folder: Path) -> Path:
    from safetensors.torch import save_model

    save_model(module, str(folder / torch_engine.WEIGHTS))
    return folder


def test_the_weights_stay_in_the_file(tmp_path: Path) -> None:
    trained = Tied()
    engine = torch_engine.open(stored(trained, tmp_path), SIGNATURE, "cpu", Tied)
    x = np.random.default_rng(0).normal(size=(3, 8)).astype("float32")
    np.testing.assert_array_equal(engine({"x": x})["y"], trained(torch.from_numpy(x)).detach().numpy())
    assert engine.module.first.weight is engine.module.second.weight
    assert str(tmp_path / torch_engine.WEIGHTS) in Path("/proc/self/maps").read_text()


def test_another_dtype_is_converted(tmp_path: Path) -> None:
    engine = torch_engine.open(stored(Tied().half(), tmp_path), SIGNATURE, "cpu", Tied)
    assert engine.module.scale.dtype == torch.float32
    assert engine({"x": np.ones((1, 8), "float32")})["y"].dtype == np.float32


def test_weights_of_another_module_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"second\.bias"):
        torch_engine.open(stored(torch.nn.ModuleDict({"first": torch.nn.Linear(8, 8)}), tmp_path), SIGNATURE, "cpu", Tied)
