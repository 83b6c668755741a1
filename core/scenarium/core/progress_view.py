"""How the command line shows work: a bar on a terminal, plain lines in a log, JSON lines for programs. All on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from scenarium.core.progress import Progress


def figures(values: Mapping[str, float]) -> str:
    """``loss 0.412 · samples/s 1830``."""
    return " · ".join(f"{name} {value:.4g}" for name, value in values.items())


def percent(done: int, total: int | None) -> str:
    """``30/120 (25 %)``, or the count alone where the total is unknown."""
    return f"{done}/{total} ({100 * done / total:.0f} %)" if total else str(done)


class Bar(Progress):
    """A bar with the current figures, for a terminal. It leaves one line for each finished piece of work."""

    def __init__(self, stream: TextIO | None = None) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
        )
        self.rich = RichProgress(*columns, console=Console(file=stream or sys.stderr), refresh_per_second=4)
        self.task: TaskID | None = None
        self.shown = ""

    def note(self, text: str) -> None:
        self.rich.console.print(text, style="dim", markup=False, highlight=False)

    def start(self, what: str, total: int | None = None) -> None:
        if self.task is not None:
            self.finish()
        self.rich.start()
        self.shown = ""
        self.task = self.rich.add_task(what, total=total, shown="")

    def advance(self, done: int, **values: float) -> None:
        if self.task is not None:
            if values:
                self.shown = figures(values)
            self.rich.update(self.task, advance=done, shown=self.shown)

    def finish(self) -> None:
        if self.task is not None:
            self.rich.stop()  # the last frame stays on the screen
            self.rich.remove_task(self.task)
            self.task = None


class Lines(Progress):
    """Plain lines for logs and pipes: at the start, at most one every ``every_s`` seconds, and at the end."""

    def __init__(self, stream: TextIO | None = None, every_s: float = 5.0) -> None:
        self.stream = stream or sys.stderr
        self.every_s = every_s
        self.what = ""
        self.total: int | None = None
        self.done = 0
        self.values: dict[str, float] = {}
        self.began = self.said = 0.0

    def note(self, text: str) -> None:
        self._emit({"event": "note", "text": text}, text)

    def start(self, what: str, total: int | None = None) -> None:
        self.what, self.total, self.done, self.values = what, total, 0, {}
        self.began = self.said = time.monotonic()
        self._emit({"event": "start", "what": what, "total": total}, f"{what}: 0/{total}" if total else what)

    def advance(self, done: int, **values: float) -> None:
        self.done += done
        self.values.update(values)
        now = time.monotonic()
        if now - self.said >= self.every_s:
            self.said = now
            self._say("advance")

    def finish(self) -> None:
        if self.what:
            self._say("finish")
            self.what = ""

    def _say(self, event: str) -> None:
        seconds = time.monotonic() - self.began
        record = {"event": event, "what": self.what, "done": self.done, "total": self.total, "seconds": round(seconds, 3), **self.values}
        shown = f" · {figures(self.values)}" if self.values else ""
        self._emit(record, f"{self.what}: {percent(self.done, self.total)} · {seconds:.0f} s{shown}")

    def _emit(self, record: Mapping[str, object], text: str) -> None:
        print(text, file=self.stream, flush=True)


class JsonLines(Lines):
    """The same events, one JSON object a line."""

    def _emit(self, record: Mapping[str, object], text: str) -> None:
        print(json.dumps(record, ensure_ascii=False), file=self.stream, flush=True)


def view(*, as_json: bool = False) -> Progress:
    """The view that fits: JSON lines when asked, a bar on a terminal, plain lines otherwise."""
    if as_json:
        return JsonLines()
    return Bar() if sys.stderr.isatty() else Lines()
