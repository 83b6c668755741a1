"""One rank of a data parallel training: ``python -m scenarium.training.rank JOB``, started by ``scenarium.training.launch``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from scenarium.core import datasets
from scenarium.core.errors import ScenariumError, Words
from scenarium.core.pipeline import Run
from scenarium.core.progress import Progress
from scenarium.core.tracking import Tracker
from scenarium.training import checkpoint
from scenarium.training.distributed import Group
from scenarium.training.launch import ERROR, EVENTS, Job
from scenarium.training.trainer import train


class Events(Progress, Tracker):
    """Writes what rank 0 reports as JSON lines, for the process that started the ranks."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf8")

    def tell(self, call: str, *args: Any, **values: Any) -> None:
        """Append one event."""
        self.file.write(json.dumps({"call": call, "args": args, "values": values}) + "\n")
        self.file.flush()

    def note(self, text: str) -> None:
        self.tell("note", text)

    def start(self, what: str, total: int | None = None) -> None:
        self.tell("start", what, total)

    def advance(self, done: int, **values: float) -> None:
        self.tell("advance", done, **values)

    def finish(self, *args: Any) -> None:
        self.tell("finish")

    def log(self, step: int, metrics: Any) -> None:
        self.tell("log", step, **metrics)


def main(path: Path) -> None:
    """Train one rank."""
    folder, job = path.parent, Job(**json.loads(path.read_text(encoding="utf8")))
    if (folder / ERROR).is_file():
        # A fault of data or settings is the same after a restart.
        sys.exit(1)
    try:
        with Group.join() as group:
            scenario = job.scenario()
            data = datasets.prepare(scenario, Progress())
            if data.manifest.get("sha256") != job.data:
                raise ScenariumError("SCN-3005", reason=Words("the data changed while the training started", "训练启动期间数据发生了变化"), log=folder)
            events: Any = Events(folder / EVENTS) if group.rank == 0 else None
            resume = job.resume or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
            run = Run(scenario, Path(job.out), Path(job.work), job.state, resume, events or Progress(), events or Tracker())
            train(scenario.config, data, run, group)
    except ScenariumError as fault:
        found = {"code": fault.code, "field": fault.field, "file": fault.file, "line": fault.line, "values": fault.values}
        checkpoint.write(folder / ERROR, lambda part: part.write_text(json.dumps(found, default=str), encoding="utf8"))
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
