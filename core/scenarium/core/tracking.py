"""Experiment tracking by MLflow, where ``mlflow-skinny`` or ``mlflow`` is installed.

Everything that talks to MLflow, its import too, happens in one daemon thread behind a bounded queue. So a tracker that is slow,
down, hanging or missing neither fails nor slows a training; what could not be recorded is said once.

Runs go to ``MLFLOW_TRACKING_URI``, else to the folder ``mlruns`` beside the settings (MLflow's file store: the only local one that
mlflow-skinny has without a database driver). An empty ``MLFLOW_TRACKING_URI`` turns tracking off. To look at the folder:
``MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri FOLDER``.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenarium.core.progress import Progress

if TYPE_CHECKING:
    from scenarium.core.manifest import Manifest
    from scenarium.core.registry import Scenario

FLUSH_SECONDS = 10.0
"""How long the end of a training waits for a tracker that has answered before, or that is local."""
SILENT_SECONDS = 2.0
"""How long it waits for a server that has never answered."""
QUEUE_SIZE = 10_000
BATCH = 500
"""Metrics of one request; MLflow allows 1000."""


class Tracker:
    """Receives the settings, figures and files of one run. The base class records nothing."""

    @classmethod
    @contextmanager
    def open(cls, scenario: Scenario, data_manifest: Mapping[str, Any], progress: Progress | None = None) -> Iterator[Tracker]:
        """The tracker of one run; the run is ``FAILED`` where the body raises."""
        if os.environ.get("MLFLOW_TRACKING_URI") == "":
            yield cls()
            return
        tracker = MlflowTracker(scenario, data_manifest)
        ended = "FAILED"
        try:
            yield tracker
            ended = "FINISHED"
        finally:
            if reason := tracker.close(ended):
                (progress or Progress()).note(f"MLflow did not record this run: {reason}")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record figures of one step."""

    def finish(self, manifest: Manifest, folder: Path) -> None:
        """Record the committed version."""


class MlflowTracker(Tracker):
    """Hands everything to a thread that owns the MLflow client."""

    def __init__(self, scenario: Scenario, data_manifest: Mapping[str, Any]) -> None:
        self.name = scenario.name
        self.local = "MLFLOW_TRACKING_URI" not in os.environ
        self.uri = os.environ.get("MLFLOW_TRACKING_URI", (scenario.settings.home / "mlruns").resolve().as_uri())
        self.params = _flat(scenario.config.model_dump(mode="json"))
        self.tags = {"scenario": scenario.name, "plugin": scenario.plugin.name, "plugin_version": scenario.plugin.version}
        if digest := data_manifest.get("sha256"):
            self.tags["data_sha256"] = str(digest)
        self.events: queue.Queue[tuple[str, Any]] = queue.Queue(QUEUE_SIZE)
        self.answered = False
        self.error: str | None = None
        self.thread = threading.Thread(target=self._work, name="scenarium-tracker", daemon=True)
        self.thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        # Figures are dropped before a training waits for a tracker.
        with suppress(queue.Full):
            self.events.put_nowait(("metrics", [(name, float(value), int(time.time() * 1000), step) for name, value in metrics.items()]))

    def finish(self, manifest: Manifest, folder: Path) -> None:
        final = [(f"test_{name}", float(value), int(time.time() * 1000), 0) for name, value in manifest.metrics.items()]
        files = [path for name in ("report.html", "manifest.json") if (path := folder / name).is_file()]
        tags = {"version": str(manifest.version), "data_origin": manifest.data_origin, **manifest.tags}
        for event in (("metrics", final), ("tags", tags), ("files", files)):
            with suppress(queue.Full):
                self.events.put_nowait(event)

    def close(self, status: str) -> str | None:
        """End the run and wait a little for the rest to be recorded; what went wrong, if anything did."""
        with suppress(queue.Full):
            self.events.put_nowait(("end", status))
        self.thread.join(FLUSH_SECONDS if self.local or self.answered else SILENT_SECONDS)
        if self.thread.is_alive():
            return f"{self.uri} did not answer in time"
        return self.error

    def _work(self) -> None:
        try:
            self._record()
        except ModuleNotFoundError as fault:
            # Not installed is a choice, and no reason for a message at each training.
            self.error = None if (fault.name or "").partition(".")[0] == "mlflow" else str(fault)
        except Exception as fault:
            self.error = f"{self.uri}: {type(fault).__name__}: {str(fault).partition(chr(10))[0][:200]}"

    def _record(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        if self.local:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mlflow.entities import Metric, Param, RunTag
            from mlflow.tracking import MlflowClient

            client = MlflowClient(tracking_uri=self.uri)
        found = client.get_experiment_by_name(self.name)
        self.answered = True
        run = client.create_run(found.experiment_id if found else client.create_experiment(self.name), tags=self.tags).info.run_id
        client.log_batch(run, params=[Param(name, value) for name, value in self.params.items()])
        while True:
            kind, value = self.events.get()
            if kind == "end":
                client.set_terminated(run, value)
                return
            if kind == "metrics":
                client.log_batch(run, metrics=[Metric(*entry) for entry in self._more(value)])
            elif kind == "tags":
                client.log_batch(run, tags=[RunTag(name, text) for name, text in value.items()])
            else:
                for path in value:
                    client.log_artifact(run, str(path))

    def _more(self, metrics: list[Any]) -> list[Any]:
        """``metrics`` and those that wait behind them, so that a slow server gets few large requests."""
        found = list(metrics)
        while len(found) < BATCH and self.events.queue and self.events.queue[0][0] == "metrics":
            found += self.events.get_nowait()[1]
        return found


def download(uri: str, folder: Path) -> Path:
    """Copy what ``runs:/<id>/<path>`` names into ``folder``; the file or folder there. Asked of the server that trainings are recorded by.

    Raises:
        ScenariumError: SCN-5101 (no such run or file, or no answer), SCN-5115 (mlflow is missing).
    """
    from scenarium.core.errors import ScenariumError

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # else a server that is down is asked for minutes
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mlflow.artifacts import download_artifacts

            folder.mkdir(parents=True, exist_ok=True)
            place = os.environ.get("MLFLOW_TRACKING_URI") or Path("mlruns").resolve().as_uri()
            return Path(download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=place))
    except ModuleNotFoundError as fault:
        raise ScenariumError("SCN-5115", module=fault.name, extra="train") from fault
    except Exception as fault:
        reason = f"{type(fault).__name__}: {str(fault).partition(chr(10))[0][:300]}"
        raise ScenariumError("SCN-5101", source=uri, reason=reason) from fault


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as ``train.lr`` and the like; MLflow takes texts of at most 6000 characters."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))[:6000]
    return found
