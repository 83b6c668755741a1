"""Fault: score counts on from call to call."""

from __future__ import annotations

from healthy import *

seen = []


@hookimpl
def score(rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    seen.extend(row["label"] == answer["label"] for row, answer in zip(rows, answers, strict=True))
    return {"accuracy": sum(seen) / (len(seen) + 1)}
