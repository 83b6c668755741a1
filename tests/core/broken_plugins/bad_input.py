"""Fault: an empty text ends in an IndexError, which a client sees as a 500."""

from __future__ import annotations

from healthy import *


class Unguarded(Request):
    text: str


@hookimpl
def schema() -> Schema:
    return Schema(Unguarded, Answer)


@hookimpl
def sample() -> Unguarded:
    return Unguarded(text="a great film")


@hookimpl
def preprocess(request: Unguarded) -> Mapping[str, np.ndarray]:
    assert request.text[0] is not None
    return {"letters": letters(request.text)}
