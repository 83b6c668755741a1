"""Fault: preprocess changes the request."""

from __future__ import annotations

from healthy import *


@hookimpl
def preprocess(request: Ask) -> Mapping[str, np.ndarray]:
    request.text = request.text.strip().title()
    return {"letters": letters(request.text)}
