"""Fault: preprocess gives another dtype than the signature says; torch converts it silently, another engine does not."""

from __future__ import annotations

from healthy import *


@hookimpl
def preprocess(request: Ask) -> Mapping[str, np.ndarray]:
    return {"letters": letters(request.text).astype(np.int32)}
