"""Fault: every request is kept."""

from __future__ import annotations

from healthy import *

history = []


@hookimpl
def preprocess(request: Ask) -> Mapping[str, np.ndarray]:
    history.append(request.model_dump_json() * 40)
    return {"letters": letters(request.text)}
