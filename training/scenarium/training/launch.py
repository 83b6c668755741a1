"""Several ranks on this machine, from inside one training: torchrun's elastic agent starts them, this process waits and relays.

The starting process has prepared the data and will measure and commit the version; the ranks only train. Each reads the prepared
data anew from the same settings and refuses other bytes, so nothing is pickled. Rank 0 tells what happens by a file of JSON
lines. A rank that dies takes its peers down and all start again, once, from the last checkpoint.
"""

from __future__ import annotations

import gc
import json
import logging
import shutil
import signal
import sys
import threading
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from scenarium.core.config import Origin, ScenarioConfig, Settings
from scenarium.core.errors import ScenariumError
from scenarium.core.pipeline import Run
from scenarium.core.registry import Plugin, Registry, Scenario
from scenarium.core.types import Data

RESTARTS = 1
JOB, EVENTS, ERROR = "job.json", "events.jsonl", "error.json"


@dataclass(frozen=True)
class Job:
    """What a rank is told, as JSON in the run's folder."""

    name: str
    plugin: dict[str, Any]
    settings: list[list[Any]]
    """Keys, value, and origin of every setting that the user wrote."""
    settings_path: str | None
    config: dict[str, Any]
    state: dict[str, Any]
    data: str | None
    """SHA-256 of the data manifest."""
    out: str
    work: str
    resume: bool

    @classmethod
    def of(cls, config: ScenarioConfig, data: Data, run: Run) -> Job:
        """Describe ``run``."""
        scenario = run.scenario
        plugin = {key: value for key, value in asdict(scenario.plugin).items() if key != "error"}
        flat = [[list(key), value, asdict(origin)] for key, (value, origin) in scenario.settings.flat.items()]
        path = str(scenario.settings.path) if scenario.settings.path else None
        settings = config.model_dump(mode="json")
        out, work = str(run.out.resolve()), str(run.work.resolve())
        return cls(scenario.name, plugin, flat, path, settings, run.state, data.manifest.get("sha256"), out, work, run.resume)

    def scenario(self) -> Scenario:
        """The scenario, rebuilt in another process."""
        flat = {tuple(key): (value, Origin(**origin)) for key, value, origin in self.settings}
        settings = Settings(flat, Path(self.settings_path) if self.settings_path else None)
        plugin = Plugin(**self.plugin)
        scenario = Registry(settings, {plugin.name: plugin}).scenario(self.name)
        return scenario.with_config(scenario.hook.config().model_validate(self.config))


def run(config: ScenarioConfig, data: Data, job: Run) -> None:
    """Train with ``config.train.nproc`` ranks.

    Raises:
        ScenariumError: what a rank raised, else SCN-3005 with the last line of its output; SCN-3004 after a signal.
    """
    folder = job.work / "ranks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / EVENTS).touch()
    (folder / JOB).write_text(json.dumps(asdict(Job.of(config, data, job)), ensure_ascii=False), encoding="utf8")
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.train.nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=RESTARTS,
        logs_specs=DefaultLogsSpecs(str(folder / "logs"), Std.ALL),
    )
    error = None
    with _relayed(folder / EVENTS, job), _contained():
        try:
            elastic_launch(launch, sys.executable)("-m", "scenarium.training.rank", str(folder / JOB))
        except (ChildFailedError, SignalException) as fault:
            error = _error(folder, fault)
    if error:
        raise error


@contextmanager
def _relayed(events: Path, job: Run) -> Iterator[None]:
    """Hand rank 0's events to the run's progress and curves while the body runs."""
    ended = threading.Event()

    def relay() -> None:
        with events.open(encoding="utf8") as file:
            rest = ""
            while True:
                last = ended.is_set()
                *lines, rest = (rest + file.read()).split("\n")
                for line in lines:
                    with suppress(json.JSONDecodeError):  # a rank that was killed leaves a torn line
                        _apply(json.loads(line), job)
                if last:
                    return
                ended.wait(0.1)

    thread = threading.Thread(target=relay, name="scenarium-ranks")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _apply(event: Mapping[str, Any], job: Run) -> None:
    target = job.log if event["call"] == "log" else getattr(job.progress, event["call"])
    target(*event["args"], **event["values"])


@contextmanager
def _contained() -> Iterator[None]:
    """Silence the agent's log, which shows tracebacks of ranks; put back the signal handlers and close the files that it leaves behind."""
    logger = logging.getLogger("torch.distributed.elastic")
    level = logger.level
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)} if main else {}
    logger.setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            yield
        finally:
            logger.setLevel(level)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            gc.collect()


def _error(folder: Path, fault: BaseException) -> ScenariumError:
    path = folder / ERROR
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf8"))
        return ScenariumError(found["code"], field=found["field"], file=found["file"], line=found["line"], **found["values"])
    logs = sorted((folder / "logs").rglob("stderr.log"), key=lambda log: log.stat().st_mtime)
    for log in reversed(logs):
        lines = log.read_text(encoding="utf8", errors="replace").strip().splitlines()
        if lines:
            return ScenariumError("SCN-3005", reason=lines[-1], log=log)
    reason = f"exit code {fault.get_first_failure()[1].exitcode}" if isinstance(fault, ChildFailedError) else str(fault)
    return ScenariumError("SCN-3005", reason=reason, log=folder / "logs")
