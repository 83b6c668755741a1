"""Fault: score returns the primary metric under another name."""

from __future__ import annotations

from healthy import *


@hookimpl
def score(rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    return {"exactness": sum(row["label"] == answer["label"] for row, answer in zip(rows, answers, strict=True)) / max(len(rows), 1)}
