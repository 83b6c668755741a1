"""Real plugins for the tests of the core: distributions written into a folder on the path, and one without torch that trains in milliseconds."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CLI = Path(sys.executable).with_name("scenarium")

PEBBLES = '''
"""Which of two heaps does a pebble of so many grams belong to? A threshold between the means; no torch."""
import json
import numpy as np
from scenarium.core import *

class Model(ModelConfig):
    shift: float = 0.0
    """Grams by which the threshold is put in the wrong place."""

class Config(ScenarioConfig):
    model: Model = Model()

class Ask(Request):
    grams: float
    """Weight of the pebble in grams."""
    note: str = ""
    """Anything."""

class Answer(Response):
    heap: str
    distance: float
    """Grams between the pebble and the threshold."""

def rows(paths):
    rng = np.random.default_rng(0)
    return [{"grams": float(round(rng.normal(3 + 4 * (i % 2), 1.2), 4)), "heap": ("light", "heavy")[i % 2]} for i in range(400)]

@hookimpl
def config(): return Config
@hookimpl
def fields(): return {"grams": Field("number", "weight in grams"), "heap": Field("label", "light or heavy")}
@hookimpl
def sources(): return [Source("pebbles", "simulated", "CC0-1.0", rows), Source("quarry", "real", "CC-BY-NC-4.0", rows, free=False)]
@hookimpl
def schema(): return Schema(Ask, Answer)
@hookimpl
def sample(): return Ask(grams=5.5)
@hookimpl
def signature(): return Signature((TensorSpec("grams", "float32", (1,)),), (TensorSpec("distance", "float32", (1,)),))
@hookimpl
def traits(): return Traits(streams=True, max_batch_size=16)
@hookimpl
def train(config, data, run):
    means = {label: np.mean([r["grams"] for r in data.train if r["heap"] == label]) for label in ("light", "heavy")}
    threshold = float((means["light"] + means["heavy"]) / 2 + config.model.shift)
    run.progress.start("weighing", 2)
    run.progress.advance(1, loss=0.5)
    run.progress.advance(1, loss=0.25)
    run.progress.finish()
    (run.out / "threshold.json").write_text(json.dumps(threshold))
    import onnx
    from onnx import TensorProto, helper
    shape = ["batch", 1]
    node = helper.make_node("Sub", ["grams", "threshold"], ["distance"])
    graph = helper.make_graph([node], "pebbles", [helper.make_tensor_value_info("grams", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("distance", TensorProto.FLOAT, shape)], [helper.make_tensor("threshold", TensorProto.FLOAT, [1], [threshold])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), run.out / "model.onnx")
    run.exports.append("model.onnx")
    return True
@hookimpl
def load(version):
    threshold = np.float32(json.loads((version / "threshold.json").read_text()))
    return lambda batch: {"distance": batch["grams"] - threshold}
@hookimpl
def preprocess(request):
    if request.grams < 0:
        raise BadInput("grams", "cannot be negative", "不能为负数")
    return {"grams": np.array([request.grams], np.float32)}
@hookimpl
def postprocess(output):
    distance = float(output["distance"][0])
    return Answer(heap="heavy" if distance > 0 else "light", distance=round(abs(distance), 6))
@hookimpl
def stream(model, request):
    yield {"text": "a pebble of "}
    yield {"text": f"{request.grams:g} g"}
@hookimpl
def metric(): return Metric("accuracy")
@hookimpl
def score(rows, answers): return {"accuracy": sum(r["heap"] == a["heap"] for r, a in zip(rows, answers)) / len(rows)}
@hookimpl
def baseline(test): return Baseline("majority", {"accuracy": max(sum(r["heap"] == h for r in test) for h in ("light", "heavy")) / len(test)})
'''


def write_distribution(
    site: Path, name: str, source: str | None, *, version: str = "0.1.0", module: str = "", plugin: str = "", api: str | None = "1.0"
) -> None:
    """What pip leaves behind: a package (``source``; None: none) and its ``dist-info`` with the entry points of a plugin."""
    module, plugin = module or f"scenarium_{name}", plugin or name
    if source is not None:
        (site / module).mkdir(parents=True, exist_ok=True)
        (site / module / "__init__.py").write_text(source, encoding="utf8")
    info = site / f"scenarium_{name}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    distribution = f"scenarium-{name.replace('_', '-')}"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\nRequires-Dist: scenarium>=0.1,<1\n", encoding="utf8")
    entries = f"[scenarium.scenarios]\n{plugin} = {module}\n" + (f"[scenarium.hook_api]\n{plugin} = {api}\n" if api else "")
    (info / "entry_points.txt").write_text(entries, encoding="utf8")


@pytest.fixture
def distribution() -> Callable[..., None]:
    """``write_distribution``, for tests that make broken plugins."""
    return write_distribution


@pytest.fixture
def pebbles_source() -> str:
    """The module of the plugin ``pebbles``."""
    return PEBBLES


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own: store, cache, settings and current folder below ``tmp_path``; English messages."""
    for name in [name for name in os.environ if name.startswith(("SCENARIUM_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SCENARIUM_LANG", "en")
    monkeypatch.setenv("SCENARIUM_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def site(clean: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed distributions, in front of the path of this process and of its children. It holds ``pebbles``."""
    folder = clean / "site"
    write_distribution(folder, "pebbles", PEBBLES)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    importlib.invalidate_caches()
    sys.modules.pop("scenarium_pebbles", None)
    return folder


@pytest.fixture
def cli(clean: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``scenarium …`` in a process of its own."""

    def run(*args: str, stdin: str | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
        given = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run([CLI, *args], capture_output=True, text=True, timeout=120, env={**os.environ, **environ}, check=False, **given)

    return run


@pytest.fixture
def as_json() -> Callable[[str], object]:
    """Read what a command printed with ``--json``."""
    return json.loads
