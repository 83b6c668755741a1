"""What a training shows of itself: the bar on a clock, the curves every so many steps. A step itself pays an addition."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from scenarium.core.pipeline import Run
from scenarium.training import guards

REFRESH_SECONDS = 0.2
SPEED_SECONDS = 0.5
CURVE_POINTS = 500
"""Points of a whole training's loss curve."""


class Meter:
    """Sums up losses between two points of the curve; knows the last step, its rate and the items seen."""

    def __init__(self, job: Run, total: int, step: int = 0, rows: int = 0, state: Mapping[str, Any] | None = None) -> None:
        self.job, self.every = job, max(1, total // CURVE_POINTS)
        self.sum: float | torch.Tensor = state["sum"] if state else 0.0
        self.steps: int = state["steps"] if state else 0
        self.extra: dict[str, float] = {}
        """More figures for the bar: the last validation loss."""
        self.loss = self.speed = math.nan
        self.step, self.rate, self.rows = step, 0.0, rows
        self.drawn_step, self.timed_rows = step, rows
        self.drawn = self.timed = 0.0

    def start(self) -> None:
        """The first step is about to begin."""
        self.drawn = self.timed = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to draw the same curve."""
        return {"sum": float(self.sum), "steps": self.steps}

    def update(self, step: int, loss: float | torch.Tensor, rate: float, rows: int) -> None:
        """Count one step: its number from 1, its loss, its learning rate, and the items seen so far.

        Raises:
            ScenariumError: SCN-3002, a loss that is not finite; for a tensor on a GPU at the next ``check``.
        """
        if isinstance(loss, float) and not math.isfinite(loss):
            guards.finite(loss, step, rate)
        self.step, self.rate, self.rows = step, rate, rows
        self.sum = self.sum + loss
        self.steps += 1
        now = time.perf_counter()
        if step % self.every == 0:
            self._point(now)
        if now - self.drawn >= REFRESH_SECONDS:
            self._draw(now)

    def check(self) -> None:
        """Refuse sums that are not finite, before they get into a checkpoint.

        Raises:
            ScenariumError: SCN-3002.
        """
        guards.finite(float(self.sum), self.step, self.rate)

    def flush(self) -> None:
        """Bring curve and bar up to date."""
        now = time.perf_counter()
        if self.steps:
            self._point(now)
        self._draw(now)

    def _point(self, now: float) -> None:
        self.check()
        self.loss = float(self.sum) / self.steps
        self.sum, self.steps = 0.0, 0
        self.job.log(self.step, loss=self.loss, lr=self.rate, samples_per_s=self._speed(now))

    def _draw(self, now: float) -> None:
        loss = float(self.sum) / self.steps if self.steps else self.loss
        self.job.progress.advance(self.step - self.drawn_step, loss=loss, lr=self.rate, samples_per_s=self._speed(now), **self.extra)
        self.drawn, self.drawn_step = now, self.step

    def _speed(self, now: float) -> float:
        """Items a second, over the last half second or more."""
        if now - self.timed >= SPEED_SECONDS or math.isnan(self.speed):
            self.speed = (self.rows - self.timed_rows) / max(now - self.timed, 1e-9)
            self.timed, self.timed_rows = now, self.rows
        return self.speed
