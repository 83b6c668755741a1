"""An extension that joins the checked scenario's relay and sees what no return value tells: time, calls, the trained module."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from scenarium.core.hookspecs import hookimpl
from scenarium.core.kit.writes import watch_writes
from scenarium.core.types import Evaluation, Row, Source

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel

    from scenarium.core.pipeline import Run


REQUESTS = 7
"""How many requests are kept. A batch of these and the sample is small, and longer than the usual powers of two less one."""


class Killed(BaseException):
    """Stands for the SIGKILL of a training."""


class NoExport:
    """An extension that leaves the export out where it is on: that takes longer than the small training."""

    def __init__(self) -> None:
        self.on = False

    @hookimpl(tryfirst=True)
    def export(self) -> list[str] | None:
        """Export nothing, or leave it to the plugin."""
        return [] if self.on else None


class Probe:
    """Wraps some hooks of the scenario under check."""

    def __init__(self) -> None:
        self.rows: list[Row] | None = None
        """Rows that stand in for the plugin's sources."""
        self.read: dict[str, list[Row]] = {}
        """The rows of each source, which is read once."""
        self.kill_at: int | None = None
        self.losses: list[float] = []
        """When ``loss`` was called in training mode, seconds on the monotonic clock."""
        self.requests: list[BaseModel] = []
        """The first requests of the measurement on held-out rows."""
        self.training = False
        self.module: Any = None
        """The module that the last training built."""
        self.written: list[Path] = []
        """Files outside the run's folders that the hook ``train`` wrote."""
        self.train_seconds = 0.0
        self.exported: list[str] = []
        """Names of the files that the hook ``export`` wrote."""
        self.evaluation_fault: Exception | None = None
        """What ``evaluate`` raised in the measurement. The version is committed all the same, so that other checks can find the cause."""

    @hookimpl(wrapper=True)
    def sources(self) -> Generator[None, Sequence[Source], Sequence[Source]]:
        """Put ``rows`` in the place of the sources, or read each of them once."""
        found = yield
        rows = self.rows
        return [self._once(source) for source in found] if rows is None else (Source("sample", "generated", "CC0-1.0", lambda paths: rows),)

    def _once(self, source: Source) -> Source:
        def read(paths: list[Path]) -> Sequence[Row]:
            if source.name not in self.read:
                self.read[source.name] = list(source.read(paths))
            return [dict(row) for row in self.read[source.name]]

        return dataclasses.replace(source, read=read) if isinstance(source, Source) else source

    @hookimpl(wrapper=True)
    def model(self) -> Generator[None, Any, Any]:
        """Remember the module that is trained, not those that are loaded later."""
        module = yield
        if self.training:
            self.module = module
        return module

    @hookimpl(wrapper=True)
    def loss(self, model: Any) -> Generator[None, Any, Any]:
        """Count the calls that train (validation calls it too), and die where asked to."""
        if model.training:
            self.losses.append(time.monotonic())
            if len(self.losses) == self.kill_at:
                raise Killed
        return (yield)

    @hookimpl(wrapper=True)
    def evaluate(self) -> Generator[None, Evaluation, Evaluation]:
        """Keep a fault for later."""
        try:
            return (yield)
        except Exception as fault:
            self.evaluation_fault = fault
            return Evaluation({}, [], [])

    @hookimpl(wrapper=True)
    def export(self) -> Generator[None, Sequence[str], Sequence[str]]:
        """Remember what was exported, whatever becomes of it."""
        names = yield
        self.exported = list(names)
        return names

    @hookimpl(wrapper=True)
    def preprocess(self, request: BaseModel) -> Generator[None, Any, Any]:
        """Remember the request."""
        if len(self.requests) < REQUESTS and request not in self.requests:
            self.requests.append(request.model_copy(deep=True))
        return (yield)

    @hookimpl(wrapper=True)
    def train(self, run: Run) -> Generator[None, bool, bool]:
        """Measure, and watch what is written."""
        self.losses, self.module, self.evaluation_fault = [], None, None
        self.training, began = True, time.monotonic()
        try:
            with watch_writes(run.out, run.work) as written:
                done = yield
        finally:
            self.training = False
        self.written = written
        self.train_seconds = time.monotonic() - began
        return done
