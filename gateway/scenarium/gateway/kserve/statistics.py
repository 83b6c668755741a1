"""Statistics of the v2 models since the gateway's start, in the members of Triton's statistics extension. Times are nanoseconds.

How many rows ran together comes with each answer, and each row counts for its share of that run: summed, the shares are the runs.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

STEPS = ("queue", "compute_input", "compute_infer", "compute_output")


class Figures:
    """One version of one model."""

    def __init__(self) -> None:
        self.last_ms = 0
        self.counts: Counter[str] = Counter()
        self.ns: Counter[str] = Counter()
        self.rows = 0
        self.runs: dict[int, float] = {}
        """Runs by the number of rows that ran together."""
        self.run_ns: dict[int, list[float]] = {}
        """Nanoseconds of the last three steps by the same."""

    def answered(self, seconds: float, queued: float, times: tuple[int, int, int, int], rows: int, run: int) -> None:
        """Count one answer; ``times`` are the worker's microseconds."""
        self.last_ms = round(time.time() * 1000)
        steps = (round(queued * 1e9) + times[0] * 1000, *(each * 1000 for each in times[1:]))
        for step, ns in zip(STEPS, steps, strict=True):
            self.counts[step] += 1
            self.ns[step] += ns
        self.counts["success"] += 1
        self.ns["success"] += round(seconds * 1e9)
        self.rows += rows
        share = rows / max(1, run)
        self.runs[run] = self.runs.get(run, 0.0) + share
        sums = self.run_ns.setdefault(run, [0.0, 0.0, 0.0])
        for place, ns in enumerate(steps[1:]):
            sums[place] += ns * share

    def failed(self, seconds: float) -> None:
        """Count one request that got no answer."""
        self.counts["fail"] += 1
        self.ns["fail"] += round(seconds * 1e9)

    def shown(self, name: str, version: str) -> dict[str, Any]:
        """The figures in the protocol's form."""
        steps = ("success", "fail", *STEPS, "cache_hit", "cache_miss")
        batches = []
        for run, count in sorted(self.runs.items()):
            whole = max(1, round(count))
            parts = zip(STEPS[1:], self.run_ns[run], strict=True)
            batches.append({"batch_size": run, **{step: {"count": whole, "ns": round(ns)} for step, ns in parts}})
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": round(sum(self.runs.values())),
            "inference_stats": {step: {"count": self.counts[step], "ns": self.ns[step]} for step in steps},
            "batch_stats": batches,
        }


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
