"""Fault: the source names no licence."""

from __future__ import annotations

from healthy import *


@hookimpl
def sources() -> Sequence[Source]:
    return [Source("words", "generated", "", words)]
