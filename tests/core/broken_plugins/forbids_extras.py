"""Fault: a misspelt field of a client's is ignored."""

from __future__ import annotations

from pydantic import BaseModel

from healthy import *


class Loose(BaseModel):
    text: str = Setting(min_length=1)


@hookimpl
def schema() -> Schema:
    return Schema(Loose, Answer)


@hookimpl
def sample() -> Loose:
    return Loose(text="a great film")
