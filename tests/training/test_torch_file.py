"""What a PyTorch file is refused for when it is converted. The whole path with real files: tests/gateway/test_importing.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from scenarium.core.errors import ScenariumError
from scenarium.training.torch_file import Input, Opened, _compare, _matched, _module

X = Input("x", "float32", (-1, 2))


def test_inputs_that_nobody_told_are_asked_for() -> None:
    for call in (lambda: _module(torch.nn.Identity(), []), lambda: _matched(["x", "mask"], []), lambda: _matched(["x", "mask"], [X])):
        with pytest.raises(ScenariumError) as refused:
            call()
        assert refused.value.code == "SCN-5109"
    assert refused.value.values["inputs"] == "x, mask"
    assert _matched(["x"], [Input("other", "float32", (2,))])[0].name == "other"


def test_a_conversion_that_answers_differently_is_refused(tmp_path: Path) -> None:
    shape = ["n", 2]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", tensors[:1], tensors[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "model.onnx")

    def against(factor: float) -> tuple[float, float]:
        opened = Opened("test", "test", lambda x: factor * x, [X], lambda *_: None)
        return _compare(opened, tmp_path / "model.onnx", (torch.from_numpy(np.ones((2, 2), np.float32)),), ["y"])

    assert against(2) == (0, 0)
    with pytest.raises(ScenariumError) as refused:
        against(3)
    assert refused.value.code == "SCN-5110"
    assert refused.value.values["relative"] == pytest.approx(1 / 3)
