"""Statistics of the v2 models since the gateway's start, in the members of Triton's statistics extension. Times are nanoseconds.

How many rows ran together comes with each answer, and each row counts for its share of that run: summed, the shares are the runs.
"""

from __future__ import annotations

import time
from typing import Any

STEPS = ("queue", "compute_input", "compute_infer", "compute_output")


class Figures:
    """One version of one model."""

    __slots__ = ("failures", "failures_s", "last_s", "rows", "runs", "seconds", "steps", "successes")

    def __init__(self) -> None:
        self.last_s = 0.0
        self.successes = self.failures = self.rows = 0
        self.seconds = self.failures_s = 0.0
        self.steps = [0.0, 0.0, 0.0, 0.0]
        """Microseconds in each of ``STEPS``."""
        self.runs: dict[int, list[float]] = {}
        """By the number of rows that ran together: the runs, and their microseconds in the last three steps."""

    def answered(self, seconds: float, queued: float, times: tuple[int, int, int, int], rows: int, run: int) -> None:
        """Count one answer; ``times`` are the worker's microseconds."""
        waited, before, forward, after = times
        self.last_s = time.time()
        self.successes += 1
        self.seconds += seconds
        self.rows += rows
        steps = self.steps
        steps[0] += queued * 1e6 + waited
        steps[1] += before
        steps[2] += forward
        steps[3] += after
        share = rows / max(1, run)
        sums = self.runs.get(run)
        if sums is None:
            sums = self.runs[run] = [0.0, 0.0, 0.0, 0.0]
        sums[0] += share
        sums[1] += before * share
        sums[2] += forward * share
        sums[3] += after * share

    def failed(self, seconds: float) -> None:
        """Count one request that got no answer."""
        self.failures += 1
        self.failures_s += seconds

    def shown(self, name: str, version: str) -> dict[str, Any]:
        """The figures in the protocol's form."""
        stats = {"success": _duration(self.successes, self.seconds * 1e9), "fail": _duration(self.failures, self.failures_s * 1e9)}
        stats |= {step: _duration(self.successes, us * 1000) for step, us in zip(STEPS, self.steps, strict=True)}
        stats |= {step: _duration(0, 0) for step in ("cache_hit", "cache_miss")}
        batches = []
        for run, (count, *parts) in sorted(self.runs.items()):
            whole = max(1, round(count))
            batches.append({"batch_size": run, **{step: _duration(whole, us * 1000) for step, us in zip(STEPS[1:], parts, strict=True)}})
        return {
            "name": name,
            "version": version,
            "last_inference": round(self.last_s * 1000),
            "inference_count": self.rows,
            "execution_count": round(sum(sums[0] for sums in self.runs.values())),
            "inference_stats": stats,
            "batch_stats": batches,
        }


def _duration(count: int, ns: float) -> dict[str, int]:
    return {"count": count, "ns": round(ns)}


class Statistics:
    """The figures of all models."""

    def __init__(self) -> None:
        self.figures: dict[tuple[str, str], Figures] = {}

    def of(self, name: str, version: str) -> Figures:
        """The figures of one version of a model."""
        found = self.figures.get((name, version))
        if found is None:
            found = self.figures[name, version] = Figures()
        return found
