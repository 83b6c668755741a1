"""MLflow in its thread: what is recorded, and that a broken tracker harms nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from scenarium.core import tracking
from scenarium.core.config import ScenarioConfig
from scenarium.core.manifest import Manifest, PluginRef
from scenarium.core.progress import Progress
from scenarium.core.tracking import MlflowTracker, Tracker
from scenarium.core.types import Metric


class Notes(Progress):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


def scenario(folder):
    plugin = SimpleNamespace(name="toy", version="0.1.0")
    return SimpleNamespace(name="line7", plugin=plugin, config=ScenarioConfig(), settings=SimpleNamespace(home=folder))


def record(folder, fail=False) -> tuple[list[str], float]:
    """One run of 300 steps; what was noted, and how long it took in all."""
    notes, began = Notes(), time.monotonic()
    with Tracker.open(scenario(folder), {"sha256": "abc"}, notes) as tracker:
        for step in range(1, 301):
            tracker.log(step, {"loss": 1 / step, "lr": 0.1})
        if fail:
            raise ValueError("the training failed")
        out = folder / "version"
        out.mkdir()
        (out / "report.html").write_text("<p>report", encoding="utf8")
        (out / "manifest.json").write_text("{}", encoding="utf8")
        ref = PluginRef(name="toy", distribution="toy", version="0.1.0", loadable=">=0.1")
        manifest = Manifest(
            scenario="line7", version=3, created=datetime.now(UTC), plugin=ref, config={}, request_schema={}, response_schema={}, sample={}, metric=Metric("f1")
        )
        manifest.metrics = {"f1": 0.9}
        tracker.finish(manifest, out)
    return notes.said, time.monotonic() - began


READ = """
import json, os, sys
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
from mlflow.tracking import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1])
run = client.search_runs([client.get_experiment_by_name("line7").experiment_id])[0]
losses = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")]
files = [f.path for f in client.list_artifacts(run.info.run_id)]
print(json.dumps([run.info.status, run.data.params, run.data.tags, run.data.metrics, losses, files]))
"""


def test_a_run_is_recorded_in_the_local_store(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 90.0)
    said, _ = record(tmp_path)
    assert said == []
    shown = subprocess.run([sys.executable, "-c", READ, (tmp_path / "mlruns").as_uri()], check=True, capture_output=True, text=True, timeout=120).stdout
    status, params, tags, metrics, losses, files = json.loads(shown)
    assert status == "FINISHED"
    assert params["train.epochs"] == "3"
    assert params["train.schedule"] == "cosine"
    assert (tags["scenario"], tags["plugin_version"], tags["data_sha256"], tags["version"]) == ("line7", "0.1.0", "abc", "3")
    assert metrics["test_f1"] == 0.9
    assert sorted(losses) == [[step, pytest.approx(1 / step)] for step in range(1, 301)]
    assert sorted(files) == ["manifest.json", "report.html"]


@pytest.fixture
def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def hanging_server():
    """Accepts by the kernel's backlog and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(5)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("uri", ["closed_port", "hanging_server"])
def test_a_tracker_that_is_down_or_hangs_costs_two_seconds_at_most(tmp_path, monkeypatch, request, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue(uri))
    said, seconds = record(tmp_path)
    assert seconds < tracking.SILENT_SECONDS + 1
    assert len(said) == 1
    assert os.environ["MLFLOW_TRACKING_URI"] in said[0]


def test_logging_never_waits(tmp_path, monkeypatch, hanging_server):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", hanging_server)
    monkeypatch.setattr(tracking, "SILENT_SECONDS", 0.01)
    with Tracker.open(scenario(tmp_path), {}) as tracker:
        began = time.perf_counter()
        for step in range(20_000):
            tracker.log(step, {"loss": 1.0})
        assert (time.perf_counter() - began) / 20_000 < 100e-6
        assert isinstance(tracker, MlflowTracker)
        assert tracker.events.qsize() <= tracking.QUEUE_SIZE


def test_a_failing_training_still_raises_its_own_error(tmp_path, monkeypatch, closed_port):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port)
    monkeypatch.setattr(tracking, "SILENT_SECONDS", 0.01)
    with pytest.raises(ValueError, match="the training failed"):
        record(tmp_path, fail=True)


def test_a_missing_mlflow_is_no_reason_to_speak(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert record(tmp_path)[0] == []


def test_an_empty_uri_turns_it_off(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    with Tracker.open(scenario(tmp_path), {}) as tracker:
        assert type(tracker) is Tracker
    assert not (tmp_path / "mlruns").exists()
