"""Fault: the rows are annotated as texts."""

from __future__ import annotations

from healthy import *


@hookimpl
def score(rows: str, answers: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    return {"accuracy": 1.0}
