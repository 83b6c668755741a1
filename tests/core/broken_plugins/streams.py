"""Fault: the traits promise streams, and there is no stream."""

from __future__ import annotations

from healthy import *
from scenarium.core import Traits


@hookimpl
def traits() -> Traits:
    return Traits(streams=True)
