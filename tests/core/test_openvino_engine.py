"""The OpenVINO engine answers like ONNX Runtime, in any thread, imports no torch, and says what is missing."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from scenarium.core.engines import open_engine
from scenarium.core.errors import ScenariumError
from scenarium.core.quantising import quantise
from scenarium.core.types import Signature, TensorSpec

pytest.importorskip("openvino")

SIGNATURE = Signature((TensorSpec("x", "float32", (-1, 16)),), (TensorSpec("y", "float32", (-1, 8)), TensorSpec("top", "int64", (-1,))))


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers over a free axis, and the place of the largest: an int64 output beside a float32 one."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("version")
    weights = [numpy_helper.from_array(rng.normal(size=shape).astype("float32"), name) for name, shape in (("a", (16, 32)), ("b", (32, 8)), ("bias", (32,)))]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Add", ["h", "bias"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["top"], axis=2, keepdims=0),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "t", 8]),
        helper.make_tensor_value_info("top", TensorProto.INT64, ["n", "t"]),
    ]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "t", 16])], outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx")
    return folder


def opened(name: str, version: Path):
    return open_engine(name, version, SIGNATURE, "cpu", build=lambda: None)


def batch(rows: int, length: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(rows).normal(size=(rows, length, 16)).astype("float32")}


def test_it_answers_like_onnx_runtime_for_every_shape(version: Path) -> None:
    ours, other = opened("openvino", version), opened("onnx", version)
    for rows, length in ((1, 1), (4, 3), (2, 7)):
        mine, theirs = ours(batch(rows, length)), other(batch(rows, length))
        np.testing.assert_allclose(mine["y"], theirs["y"], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(mine["top"], theirs["top"])
        assert {name: array.dtype for name, array in mine.items()} == {name: array.dtype for name, array in theirs.items()}


def test_answers_are_kept_and_threads_do_not_mix(version: Path) -> None:
    engine = opened("openvino", version)
    alone = [engine(batch(rows))["y"] for rows in range(1, 9)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda rows: engine(batch(rows))["y"], [*range(1, 9)] * 8))
    for place, found in enumerate(together):
        np.testing.assert_array_equal(found, alone[place % 8])


def test_bf16_is_near_and_never_the_default(version: Path) -> None:
    exact, near = opened("onnx", version)(batch(4))["y"], opened("openvino:bf16", version)(batch(4))["y"]
    np.testing.assert_allclose(near, exact, atol=0.05 * np.abs(exact).max())
    assert np.abs(opened("openvino", version)(batch(4))["y"] - exact).max() < 1e-4


def test_static_int8_answers_do_not_depend_on_the_batch(version: Path, tmp_path: Path) -> None:
    samples = [batch(1) for _ in range(4)] + [{"x": 1.5 * batch(rows)["x"][:1]} for rows in range(2, 20)]
    quantise(version / "model.onnx", tmp_path / "model.onnx", samples)
    exact = opened("onnx", version)(batch(8))["y"]
    many = batch(8)
    for name in ("onnx", "openvino"):
        engine = opened(name, tmp_path)
        found = engine(many)["y"]
        assert 0 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max(), "it computes in int8, and near enough"
        loud = {"x": np.concatenate([many["x"][:1], 50 * many["x"][1:]])}
        np.testing.assert_array_equal(engine(loud)["y"][0], engine({"x": many["x"][:1]})["y"][0])


def test_it_imports_no_torch_and_no_onnx_runtime(version: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom scenarium.core.engines import open_engine\nfrom scenarium.core.types import Signature\n"
        f"open_engine('openvino', Path({str(version)!r}), Signature((), ()), 'cpu', build=lambda: None)\n"
        "print([name for name in ('torch', 'onnxruntime', 'onnx') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_what_is_missing_is_named(version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ScenariumError, match="SCN-6003"):
        opened("openvino", tmp_path)
    with pytest.raises(ScenariumError, match="SCN-6001") as unknown:
        opened("openvino:int4", version)
    assert "openvino:bf16" in unknown.value.hint()
    monkeypatch.delitem(sys.modules, "scenarium.core.engines.openvino_engine", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)  # as where it is not installed
    with pytest.raises(ScenariumError, match=r"SCN-6002 .*'openvino'") as missing:
        opened("openvino", version)
    assert "scenarium[openvino]" in missing.value.hint("zh")
