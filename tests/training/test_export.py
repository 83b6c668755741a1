"""The export in ONNX Runtime beside the module, and what happens where it cannot be made or differs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch

import runs
from scenarium.core import exports
from scenarium.core.engines.torch_engine import TorchEngine
from scenarium.core.errors import ScenariumError
from scenarium.core.pipeline import Run
from scenarium.core.progress import Progress
from scenarium.core.types import Signature, TensorSpec, Traits
from scenarium.training.export import export


class Encoder(torch.nn.Module):
    """Two inputs that share a free axis, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = torch.nn.Linear(16, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.layer(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)
        return self.head(hidden), hidden.mean(1)


ENCODER = Signature(
    (TensorSpec("input_ids", "int64", (-1,)), TensorSpec("attention_mask", "int64", (-1,))),
    (TensorSpec("logits", "float32", (-1, 3)), TensorSpec("pooled", "float32", (16,))),
)


def inputs(rows: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {"input_ids": rng.integers(0, 50, (rows, length)), "attention_mask": np.ones((rows, length), np.int64)}


@pytest.mark.parametrize("traced", [(4, 7), (1, 1)], ids=["real batch", "one row of one token"])
def test_free_axes_stay_free(tmp_path, traced):
    module = Encoder()
    assert export(module, ENCODER, inputs(*traced), tmp_path) == ["model.onnx"]
    assert module.training, "the module is left as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == ["input_ids", "attention_mask"]
    ours = TorchEngine(module, ENCODER, "cpu")
    for shape in ((1, 3), (6, 20), (2, 2)):
        found = session.run(["logits", "pooled"], inputs(*shape))
        for mine, theirs in zip(ours(inputs(*shape)).values(), found, strict=True):
            np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-5)


class Branching(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if float(x.sum()) > 0 else x


SMALL = Signature((TensorSpec("x", "float32", (3,)),), (TensorSpec("y", "float32", (3,)),))


def test_a_branch_on_data_is_refused_in_one_line(tmp_path, capfd):
    with pytest.raises(ScenariumError) as caught:
        export(Branching(), SMALL, {"x": np.ones((2, 3), np.float32)}, tmp_path)
    assert caught.value.code == "SCN-3008"
    assert "\n" not in caught.value.title()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_without_inputs_there_is_nothing_to_export(tmp_path):
    assert export(Branching(), Signature((), ()), {}, tmp_path) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return runs.run(folder, runs.scenario("train.epochs=1", "model.ragged=true"), held_out=40)


def opened(job: Run, module: torch.nn.Module | None = None, tolerance: float = 1e-4):
    """What ``exports.write`` needs of a runtime, with the trained module or another in its place."""
    config = job.scenario.config
    signature = job.scenario.hook.signature(config=config, state={})
    net = job.scenario.implementation.Net(0.0)
    net.load_state_dict(runs.weights(job.work.parent))
    return SimpleNamespace(
        scenario=job.scenario, signature=signature, processor={}, traits=Traits(tolerance=tolerance), model=TorchEngine(module or net, signature, "cpu")
    )


def test_the_pipeline_checks_on_held_out_rows(tmp_path, trained):
    job = Run(trained.scenario, tmp_path, tmp_path, {})
    rows = runs.data(trained.scenario, 40).val
    assert exports.write(job, opened(trained), rows)["export"] == "checked"
    assert job.exports == ["model.onnx"]


def test_an_export_whose_length_was_fixed_by_the_trace_is_refused(tmp_path, trained):
    rows = runs.data(trained.scenario, 40).val
    job, runtime = Run(trained.scenario, tmp_path, tmp_path, {}), opened(trained)
    batch = exports.inputs(runtime, rows[: exports.ROWS])
    length = batch["points"].shape[1]
    lengths = [each["points"].shape[1] for each in exports.others(runtime, rows, batch)]
    assert lengths
    assert length not in lengths
    fixed = Signature((TensorSpec("points", "float32", (length, 8)),), runtime.signature.outputs)
    job.exports = export(runtime.model.module, fixed, batch, tmp_path)
    found = exports.write(job, runtime, rows)["export"]
    assert found.startswith("none: The model cannot be exported"), found
    assert "points" in found
    assert job.exports == []


def test_an_export_that_differs_is_dropped_and_said(tmp_path, trained):
    notes = []
    progress = type("Notes", (Progress,), {"note": lambda self, text: notes.append(text)})()
    job = Run(trained.scenario, tmp_path, tmp_path, {}, progress=progress)
    runtime = opened(trained)
    export(runtime.model.module, runtime.signature, {"points": np.ones((2, 3, 8), np.float32)}, tmp_path)
    job.exports = ["model.onnx"]
    other = runs.run(tmp_path / "other", runs.scenario("train.epochs=1", "model.ragged=true", "train.seed=5"))
    found = exports.write(job, opened(other), runs.data(trained.scenario, 40).val)["export"]
    assert found.startswith("none: The export answers differently from the trained model: logits")
    assert notes == [f"no export: {found.removeprefix('none: ')}"]
    assert job.exports == []
    assert not (tmp_path / "model.onnx").exists()


def test_a_missing_export_is_explained(tmp_path, trained):
    job = Run(trained.scenario, tmp_path, tmp_path, {})
    runtime = opened(trained)
    runtime.model = SimpleNamespace()
    assert exports.write(job, runtime, runs.data(trained.scenario).train)["export"] == "none: the plugin loads a model of its own"
    runtime.signature = Signature((), ())
    assert exports.write(job, runtime, [])["export"] == "none: the scenario has no tensor signature"
    assert json.dumps(job.exports) == "[]"
