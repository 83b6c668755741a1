"""Fault: the sample was built without validation and is no request."""

from __future__ import annotations

from healthy import *


@hookimpl
def sample() -> Ask:
    return Ask.model_construct(text="")
