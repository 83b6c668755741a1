"""Models that exist already, imported from real files of every kind, served by a real gateway, and held against the original's own answers."""

from __future__ import annotations

import json
import os
import signal
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from scenarium.core import compare
from scenarium.core.errors import ScenariumError
from scenarium.core.importing import import_model
from scenarium.core.importing.sources import Given
from scenarium.core.registry import Registry
from scenarium.core.settings import Settings
from tests.gateway.conftest import Lab, until

pytestmark = pytest.mark.slow

IDS = np.array([[1, 2, 3, 4, 5], [5, 0, 7, 8, 9]], np.int64)
CONFIG = """
name: "bert-base" platform: "pytorch_libtorch" max_batch_size: 8
input [ { name: "INPUT_IDS" data_type: TYPE_INT64 dims: [ -1 ] } ]
"""


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.out = torch.nn.Embedding(50, 8), torch.nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.embedding(ids).mean(1))


def linear(path: Path, first: str | int = "batch", scale: float = 1.0) -> Path:
    """x [first, 4] -> the odd names y.1 [first, 3] and sum [first]; its weights lie in a second file."""
    weights = np.random.default_rng(1).standard_normal((4, 3)).astype("float32") * scale
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y.1"]), helper.make_node("ReduceSum", ["y.1", "axis"], ["sum"], keepdims=0)],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [first, 4])],
        [helper.make_tensor_value_info("y.1", TensorProto.FLOAT, [first, 3]), helper.make_tensor_value_info("sum", TensorProto.FLOAT, [first])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([1]), "axis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=60)
    return path


def bring(lab: Lab, source: object, name: str, **options: object):
    registry = Registry(Settings.read(environ={"SCENARIUM_STORE": lab.store.root}))
    return import_model(str(source), name, registry, lab.store, **options)


@pytest.fixture(scope="module")
def net() -> Net:
    return Net().eval()


@pytest.fixture(scope="module")
def files(shared_lab: Lab, net: Net) -> dict[str, Path]:
    """The same network as a Triton entry with TorchScript, as torch.export, and as MLflow saves it."""
    folder, ids = shared_lab.folder, torch.from_numpy(IDS)
    entry = folder / "triton" / "bert-base"
    (entry / "1").mkdir(parents=True)
    (entry / "config.pbtxt").write_text(CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(net, ids), entry / "1" / "model.pt")
        free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
        torch.export.save(torch.export.export(net, (ids,), dynamic_shapes={"ids": free}), folder / "net.pt2")
    return {"triton": entry.parent, "export": folder / "net.pt2"}


@pytest.fixture(scope="module")
def gateway(shared_lab: Lab, files: dict[str, Path]):
    bring(shared_lab, linear(shared_lab.folder / "lin" / "model.onnx"), "linear")
    bring(shared_lab, linear(shared_lab.folder / "one" / "model.onnx", 1), "fixed_batch")
    bring(shared_lab, linear(shared_lab.folder / "whole" / "model.onnx", 6), "whole_tensors")
    bring(shared_lab, files["triton"], "bert_base")
    bring(shared_lab, files["export"], "exported")
    found = shared_lab.start(None)
    found.ready("linear", "fixed_batch", "whole_tensors", "bert_base", "exported")
    return found


def original(lab: Lab, kind: str, x: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(lab.folder / kind / "model.onnx").run(None, {"x": x})


def infer(gateway, name: str, tensor: str, array: np.ndarray) -> dict[str, np.ndarray]:
    import tritonclient.http as triton

    client = triton.InferenceServerClient(gateway.url.removeprefix("http://"))
    given = triton.InferInput(tensor, array.shape, {"float32": "FP32", "int64": "INT64"}[str(array.dtype)])
    given.set_data_from_numpy(array)
    try:
        answer = client.infer(name, [given])
        return {each["name"]: answer.as_numpy(each["name"]) for each in answer.get_response()["outputs"]}
    finally:
        client.close()


def test_onnx_with_external_data_answers_as_the_file_does(gateway, shared_lab: Lab) -> None:
    x = np.random.default_rng(3).random((5, 4), np.float32)
    y, total = original(shared_lab, "lin", x)
    answers = [gateway.client.post("/scenarios/linear/predict", json={"inputs": {"x": row.tolist()}}).json()["outputs"] for row in x]
    np.testing.assert_allclose([answer["y.1"] for answer in answers], y, rtol=1e-5)
    np.testing.assert_allclose([answer["sum"] for answer in answers], total, rtol=1e-5)
    found = infer(gateway, "linear", "x", x)
    np.testing.assert_allclose(found["y.1"], y, rtol=1e-5)
    np.testing.assert_allclose(found["sum"][:, 0], total, rtol=1e-5)
    (worker,) = gateway.client.get("/scenarios/linear").json()["workers"]
    assert "libtorch" not in Path(f"/proc/{worker['pid']}/maps").read_text()
    assert gateway.client.get("/scenarios/linear").json()["engine"] == "onnx"
    assert 'scenario="linear"' in gateway.client.get("/metrics").text


def test_a_fixed_batch_axis_runs_row_by_row(gateway, shared_lab: Lab) -> None:
    x = np.random.default_rng(4).random((3, 4), np.float32)
    each = np.concatenate([original(shared_lab, "one", row[None])[0] for row in x])
    np.testing.assert_allclose(infer(gateway, "fixed_batch", "x", x)["y.1"], each, rtol=1e-5)
    whole = np.random.default_rng(5).random((6, 4), np.float32)
    y, _ = original(shared_lab, "whole", whole)
    answer = gateway.client.post("/scenarios/whole_tensors/predict", json={"inputs": {"x": whole.tolist()}}).json()["outputs"]
    np.testing.assert_allclose(answer["y.1"], y, rtol=1e-5)
    np.testing.assert_allclose(infer(gateway, "whole_tensors", "x", whole[None])["y.1"][0], y, rtol=1e-5)
    # Only what has a free batch axis is loadable with batching by Triton.
    assert sorted(path.name for path in Path(shared_lab.store.root, "models").iterdir()) == ["bert_base", "exported", "linear"]


@pytest.mark.parametrize(("name", "tensor", "output"), [("bert_base", "INPUT_IDS", "OUTPUT__0"), ("exported", "ids", "output")])
def test_pytorch_files_answer_as_the_module_does(gateway, shared_lab: Lab, net: Net, name: str, tensor: str, output: str) -> None:
    with torch.no_grad():
        wanted = net(torch.from_numpy(IDS)).numpy()
    np.testing.assert_allclose(infer(gateway, name, tensor, IDS)[output], wanted, rtol=1e-4, atol=1e-5)
    # Rows of unequal length in one batch: none is padded.
    rows = [IDS[0, :3], IDS[1, :5], IDS[0, :2]]
    answers = gateway.client.post(f"/scenarios/{name}/predict/batch", json=[{"inputs": {tensor: row.tolist()}} for row in rows]).json()
    for row, answer in zip(rows, answers, strict=True):
        with torch.no_grad():
            np.testing.assert_allclose(answer["outputs"][output], net(torch.from_numpy(row[None])).numpy()[0], rtol=1e-4, atol=1e-5)
    manifest = shared_lab.store.manifest(name, 1)
    assert "absolute" in manifest.tags["parity"]
    assert not [file for file in manifest.files if file.endswith((".pt", ".pt2", ".pkl"))]


def test_a_wrong_tensor_is_the_clients_error_and_is_named(gateway) -> None:
    asked = {
        "inputs.x": [{"inputs": given} for given in ({}, {"x": [1, 2, 3]}, {"x": [1, 2, [3], 4]}, {"x": ["a", 1, 2, 3]}, {"x": None})],
        "inputs.z": [{"inputs": {"x": [1, 2, 3, 4], "z": 1}}],
        "inputs": [{}, {"inputs": [1]}],
    }
    for field, bodies in asked.items():
        for body in bodies:
            answer = gateway.client.post("/scenarios/linear/predict", json=body)
            assert (answer.status_code, answer.json()["field"]) == (422, field), (body, answer.text)
    huge = gateway.client.post("/scenarios/linear/predict", content=b'{"inputs": {"x": [1e300, 0, 0, NaN]}}')
    assert (huge.status_code, huge.json()["field"]) == (422, "inputs.x")
    assert gateway.client.post("/scenarios/bert_base/predict", json={"inputs": {"INPUT_IDS": [1.5]}}).json()["field"] == "inputs.INPUT_IDS"
    assert gateway.client.post("/scenarios/bert_base/predict", json={"inputs": {"INPUT_IDS": []}}).status_code == 422
    filled = gateway.client.post("/scenarios/linear/predict", json={"inputs": {"x": 0.5}})
    assert filled.json() == gateway.client.post("/scenarios/linear/predict", json={"inputs": {"x": [0.5] * 4}}).json()


def test_versions_are_promoted_and_rolled_back(gateway, shared_lab: Lab) -> None:
    lab, ask = shared_lab, {"inputs": {"x": [1, 1, 1, 1]}}
    before = gateway.client.post("/scenarios/linear/predict", json=ask).json()["outputs"]["sum"]
    assert not bring(lab, linear(lab.folder / "lin2" / "model.onnx", scale=2.0), "linear").production
    scenario = Registry(Settings.read(environ={"SCENARIUM_STORE": lab.store.root})).scenario("linear")
    assert compare.promote(scenario, lab.store, 2) is None
    until(lambda: abs(gateway.client.post("/scenarios/linear/predict", json=ask).json()["outputs"]["sum"] - 2 * before) < 1e-4, 20)
    compare.rollback(lab.store, "linear")
    until(lambda: gateway.client.post("/scenarios/linear/predict", json=ask).json()["outputs"]["sum"] == before, 20)
    bring(lab, linear(lab.folder / "lin3" / "model.onnx", 6), "linear")
    with pytest.raises(ScenariumError) as refused:
        compare.promote(scenario, lab.store, 3)
    assert refused.value.code == "SCN-5116"


def test_mlflow_models_join_a_running_gateway(gateway, shared_lab: Lab, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = shared_lab
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (lab.folder / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.onnx
        import mlflow.pytorch
        from mlflow.tracking import MlflowClient

        client = MlflowClient()
        run = client.create_run(client.create_experiment("imports")).info.run_id
        mlflow.onnx.save_model(onnx.load(lab.folder / "lin" / "model.onnx"), lab.folder / "as_onnx", pip_requirements=[])
        mlflow.pytorch.save_model(torch.jit.script(net), lab.folder / "as_torch", pip_requirements=[], serialization_format="pickle")
        client.log_artifacts(run, str(lab.folder / "as_onnx"), "onnx")
        client.log_artifacts(run, str(lab.folder / "as_torch"), "torch")
    bring(lab, f"runs:/{run}/onnx", "from_onnx")
    bring(lab, f"runs:/{run}/torch", "from_torch", given=[Given.parse("ids:int64:-1,-1")])
    os.kill(gateway.popen.pid, signal.SIGHUP)
    gateway.wait_event("reloaded", added=["from_onnx", "from_torch"])
    gateway.ready("from_onnx", "from_torch")
    x = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(infer(gateway, "from_onnx", "x", x)["y.1"], original(lab, "lin", x)[0], rtol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(infer(gateway, "from_torch", "ids", IDS)["output"], net(torch.from_numpy(IDS)).numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ScenariumError) as missing:
        bring(lab, f"runs:/{run}/nothing", "absent")
    assert missing.value.code == "SCN-5101"
    assert "absent" not in lab.store.scenarios()
    assert json.loads(Path(lab.store.path("from_onnx", "imported.json")).read_text()) == {"plugin": "tensor_model"}
