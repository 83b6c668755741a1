"""What ``scenarium import`` finds out about a model, and what it refuses: each planted file gets its own error and leaves the store as it was."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from scenarium.core.cli import run
from scenarium.core.errors import BadInput, ScenariumError
from scenarium.core.importing import import_model, onnx_file, sources, triton_entry
from scenarium.core.importing.onnx_file import inspect
from scenarium.core.importing.sources import Given
from scenarium.core.probe import examine
from scenarium.core.registry import TENSOR_MODEL, Registry
from scenarium.core.runtime import Runtime
from scenarium.core.settings import Settings
from scenarium.core.store import Store
from scenarium.core.tensor_model import read
from scenarium.core.types import TensorSpec

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def save(path: Path, nodes, inputs, outputs, initializers=(), opset: int = 17, ir: int = 9, domain: str = "") -> Path:
    """An ONNX file; ``inputs`` and ``outputs`` are (name, element type, shape)."""
    tensors = [[helper.make_tensor_value_info(*each) for each in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "graph", *tensors, list(initializers))
    domains = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    path.write_bytes(helper.make_model(graph, opset_imports=domains, ir_version=ir).SerializeToString())
    return path


def double(path: Path, shape=("n", 2), **more) -> Path:
    return save(path, [helper.make_node("Add", ["x", "x"], ["y"])], [("x", FLOAT, shape)], [("y", FLOAT, shape)], **more)


@pytest.fixture
def lab(tmp_path: Path):
    registry = Registry(Settings.read(environ={"SCENARIUM_STORE": str(tmp_path / "store")}), {})
    return registry, Store(str(tmp_path / "store"))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def truncated(path: Path) -> Path:
    double(path).write_bytes(double(path).read_bytes()[:40])
    return path


def text_file(path: Path) -> Path:
    path.write_text("this is no model")
    return path


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def custom(path: Path) -> Path:
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="acme")
    return save(path, [node], [("x", FLOAT, ("n", 2))], [("y", FLOAT, ("n", 2))], domain="acme")


def without_inputs(path: Path) -> Path:
    return save(path, [helper.make_node("Identity", ["w"], ["y"])], [], [("y", FLOAT, (2,))], [numpy_helper.from_array(np.ones(2, np.float32), "w")])


def texts(path: Path) -> Path:
    return save(path, [helper.make_node("Identity", ["x"], ["y"])], [("x", TensorProto.STRING, ("n",))], [("y", TensorProto.STRING, ("n",))])


def without_its_data(path: Path) -> Path:
    weights = numpy_helper.from_array(np.ones((2, 400), np.float32), "w")
    save(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", FLOAT, ("n", 2))], [("y", FLOAT, ("n", 400))], [weights])
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="data.bin")
    (path.parent / "data.bin").unlink()
    return path


def never_runs(path: Path) -> Path:
    """It wants rows of 5 numbers and declares a free length."""
    weights = numpy_helper.from_array(np.ones((5, 3), np.float32), "w")
    return save(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", FLOAT, ("n", "m"))], [("y", FLOAT, ("n", 3))], [weights])


PLANTED = [
    (truncated, "SCN-5102"),
    (text_file, "SCN-5102"),
    (empty, "SCN-5102"),
    (custom, "SCN-5103"),
    (lambda path: double(path, opset=99), "SCN-5104"),
    (lambda path: double(path, ir=99), "SCN-5104"),
    (texts, "SCN-5105"),
    (without_inputs, "SCN-5106"),
    (without_its_data, "SCN-5102"),
    (never_runs, "SCN-5107"),
    (lambda path: path, "SCN-5101"),
    (lambda path: path.parent, "SCN-5101"),
]


@pytest.mark.parametrize(("plant", "code"), PLANTED)
def test_what_cannot_be_served_is_refused_and_leaves_the_store_as_it_was(tmp_path: Path, lab, plant, code: str) -> None:
    registry, store = lab
    import_model(str(double(tmp_path / "good.onnx")), "good", registry, store)
    before = everything(tmp_path / "store")
    (tmp_path / "bad").mkdir()
    with pytest.raises(ScenariumError) as refused:
        import_model(str(plant(tmp_path / "bad" / "bad.onnx")), "bad", registry, store)
    assert refused.value.code == code, str(refused.value)
    for lang in ("en", "zh"):
        assert refused.value.title(lang)
        assert refused.value.hint(lang)
    assert everything(tmp_path / "store") == before
    assert store.scenarios() == ["good"]


def test_a_sample_of_the_users_stands_in_where_generated_inputs_fail(tmp_path: Path, lab) -> None:
    registry, store = lab
    sample = tmp_path / "sample.json"
    sample.write_text(json.dumps({"inputs": {"x": [1, 2, 3, 4, 5]}}))
    found = import_model(str(never_runs(tmp_path / "model.onnx")), "five", registry, store, sample=sample)
    assert found.version.manifest.answer == {"outputs": {"y": [15.0, 15.0, 15.0]}}
    sample.write_text(json.dumps({"inputs": {"z": [1]}}))
    with pytest.raises(ScenariumError) as refused:
        import_model(str(tmp_path / "model.onnx"), "five", registry, store, sample=sample)
    assert (refused.value.code, refused.value.field) == ("SCN-5114", "inputs.x")
    assert store.versions("five") == [1]


def test_the_built_in_plugin_is_healthy() -> None:
    assert examine(TENSOR_MODEL).state == "ok"


def test_names_are_checked(tmp_path: Path) -> None:
    from scenarium.core.registry import Plugin

    model = str(double(tmp_path / "model.onnx"))
    settings = Settings.read(environ={"SCENARIUM_STORE": str(tmp_path / "store")})
    registry, store = Registry(settings, {"taken": Plugin("taken", "nowhere", "scenarium-taken", "0.1.0")}), Store(str(tmp_path / "store"))
    for name, code in (("taken", "SCN-5111"), ("tensor_model", "SCN-5111"), ("No-Name", "SCN-7601")):
        with pytest.raises(ScenariumError) as refused:
            import_model(model, name, registry, store)
        assert refused.value.code == code
    assert store.scenarios() == []


def test_an_imported_model_is_a_scenario_without_a_table(tmp_path: Path, lab) -> None:
    registry, store = lab
    import_model(str(double(tmp_path / "model.onnx")), "doubled", registry, store)
    again = Registry(registry.settings, {})
    assert again.names() == {"doubled": "tensor_model"}
    assert again.serve_config("doubled").engine == "onnx"
    other = Registry(Settings.read(environ={"SCENARIUM_STORE": store.url}, sets=["serve.workers=2"], scenario="doubled"), {})
    assert other.serve_config("doubled").workers == 2
    version = store.open("doubled")
    runtime = Runtime.open(again.scenario("doubled"), version.folder, version.manifest)
    (answer,) = runtime.predict([runtime.decode(b'{"inputs": {"x": [1, 2.5]}}')])
    assert answer.model_dump(mode="json") == {"outputs": {"y": [2.0, 5.0]}}
    with pytest.raises(ScenariumError) as refused:
        again.scenario("doubled").hook.fields(config=again.scenario("doubled").config)
    assert refused.value.code == "SCN-5112"


@pytest.mark.parametrize(
    ("nodes", "shapes", "batch", "row"),
    [
        ([("Add", ["x", "x"], ["y"])], (("n", 2), ("n", 2)), "free", (2,)),
        ([("Add", ["x", "x"], ["y"])], ((1, 2), (1, 2)), "one", (2,)),
        ([("Add", ["x", "x"], ["y"])], ((4, 2), (4, 2)), "none", (4, 2)),
        ([("Softmax", ["x"], ["y"], {"axis": 0})], (("n", 2), ("n", 2)), "none", (-1, 2)),  # its rows look at each other
        ([("Add", ["x", "x"], ["y"])], ((), ()), "none", ()),
    ],
)
def test_the_batch_axis_is_tried_not_believed(tmp_path: Path, nodes, shapes, batch: str, row: tuple[int, ...]) -> None:
    made = [helper.make_node(kind, given, found, **(more[0] if more else {})) for kind, given, found, *more in nodes]
    found = inspect(save(tmp_path / "model.onnx", made, [("x", FLOAT, shapes[0])], [("y", FLOAT, shapes[1])]), "model.onnx")
    assert (found.batch, found.inputs[0].shape, found.outputs[0].shape, found.pure) == (batch, row, row, True)


def test_random_numbers_are_noticed(tmp_path: Path) -> None:
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"])]
    assert not inspect(save(tmp_path / "model.onnx", nodes, [("x", FLOAT, (3,))], [("y", FLOAT, (3,))]), "model.onnx").pure


def test_values_are_held_against_type_and_shape() -> None:
    assert read(TensorSpec("x", "float32", (2, -1)), {"x": [[1, 2, 3], [4, 5, 6]]}).shape == (2, 3)
    assert read(TensorSpec("x", "float16", (3,)), {"x": 0.5}).tolist() == [0.5, 0.5, 0.5]
    assert read(TensorSpec("x", "int64", ()), {"x": 7}).shape == ()
    bad = [
        (("uint8", (1,)), [256]),
        (("int8", (1,)), [1.0]),
        (("int64", (1,)), [2**70]),
        (("bool", (1,)), [1]),
        (("float16", (1,)), [1e6]),
        (("float32", (2,)), [1]),
        (("float32", (-1,)), []),
        (("float32", (1,)), [float("nan")]),
        (("float32", (1,)), [True]),
        (("float32", (-1,)), 1),
        (("float32", (1,)), [{}]),
    ]
    for (dtype, shape), value in bad:
        with pytest.raises(BadInput) as refused:
            read(TensorSpec("x", dtype, shape), {"x": value})
        assert refused.value.field == "inputs.x", (dtype, shape, value)


@pytest.mark.slow
def test_a_pytorch_file_that_is_no_model_is_refused_by_its_own_process(tmp_path: Path, lab) -> None:
    import torch

    registry, store = lab
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pt")
    with pytest.raises(ScenariumError) as refused:
        import_model(str(tmp_path / "weights.pt"), "weights", registry, store)
    assert refused.value.code == "SCN-5108"
    assert "dict" in refused.value.title()
    assert store.scenarios() == []


def test_a_triton_entry_is_read(tmp_path: Path) -> None:
    entry = tmp_path / "repository" / "net"
    for number in (1, 2, 3):
        (entry / str(number)).mkdir(parents=True)
        (entry / str(number) / "model.pt").write_bytes(b"")
    inputs = 'input [ { name: "A" data_type: TYPE_FP16 dims: [ 3, -1 ] } ]'
    (entry / "config.pbtxt").write_text(f'platform: "pytorch_libtorch" max_batch_size: 4 {inputs} version_policy {{ specific {{ versions: [ 2 ] }} }}')
    found = triton_entry.read(tmp_path / "repository", "repository")
    assert (found.file, found.max_batch_size, found.inputs) == (entry / "2" / "model.pt", 4, [("A", "float16", (-1, 3, -1))])
    faults = {"platform: ": "config.pbtxt", 'platform: "tensorflow_graphdef"': "tensorflow", 'platform: "onnxruntime_onnx"': "3/model.onnx"}
    for text, named in faults.items():
        (entry / "config.pbtxt").write_text(text)
        with pytest.raises(ScenariumError, match=named) as refused:
            triton_entry.read(entry, "net")
        assert refused.value.code == "SCN-5101"
    (tmp_path / "repository" / "other").mkdir()
    (tmp_path / "repository" / "other" / "config.pbtxt").write_text("")
    with pytest.raises(ScenariumError, match="repository/net, repository/other"):
        triton_entry.read(tmp_path / "repository", "repository")


def test_inputs_are_given_on_the_command_line() -> None:
    assert Given.parse("a:b:int64:-1,4") == Given("a:b", "int64", (-1, 4))
    for text in ("x", "x:float99:1", "x:float32:0", "x:float32:a", ":float32:1"):
        with pytest.raises(ValueError, match=r".*"):
            Given.parse(text)
    assert sources.Fetched().notes == {}


def test_the_command_says_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in list(os.environ):
        if name.startswith("SCENARIUM_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SCENARIUM_STORE", str(tmp_path / "store"))
    model = str(double(tmp_path / "model.onnx"))
    assert run(["import", model, "--name", "doubled"]) == 0
    assert "scenarium serve" in capsys.readouterr().out
    assert run(["import", model, "--name", "doubled", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["version"], found["production"], found["inputs"]) == (2, False, [{"name": "x", "dtype": "float32", "shape": [2], "pad": 0}])
    assert run(["import", str(tmp_path / "absent.onnx"), "--name", "absent"]) == 1
    assert "SCN-5101" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("onnx", lambda folder: onnx_file.place(double(folder / "a.onnx"), folder)),
        ("onnxruntime", lambda folder: onnx_file.open_session(double(folder / "a.onnx"), "a.onnx")),
        ("tritonclient.grpc", lambda folder: triton_entry.read(folder, "net")),
    ],
)
def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, call) -> None:
    (tmp_path / "config.pbtxt").write_text('platform: "onnxruntime_onnx"')
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ScenariumError, match=module) as refused:
        call(tmp_path)
    assert refused.value.code == "SCN-5115"
