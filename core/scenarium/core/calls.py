"""What a model that asks another server may know of the requests it runs for: what is served, until when anyone waits, and that nobody does any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import NamedTuple

from scenarium.core.config import ServeConfig


class Served(NamedTuple):
    """The version that is being loaded."""

    name: str
    """The scenario's."""
    version: int
    """0: it is not in the store."""
    serve: ServeConfig


SERVED: ContextVar[Served | None] = ContextVar("served", default=None)
"""Set while the hook ``load`` runs."""


class Call:
    """One run of a batch. ``drop`` may be called by another thread than the one that runs it."""

    def __init__(self, rids: Iterable[int], deadline: float) -> None:
        self._rids = set(rids)
        self._stop: Callable[[], object] | None = None
        self.deadline = deadline
        """When the last of its requests is late (``time.monotonic``)."""

    @property
    def cancelled(self) -> bool:
        """Whether all who waited have left."""
        return not self._rids

    def watch(self, stop: Callable[[], object] | None) -> None:
        """Have ``stop`` called when all have left. It may come a moment after the run has ended."""
        self._stop = stop

    def drop(self, rid: int) -> None:
        """Who asked this has left."""
        self._rids.discard(rid)
        stop = self._stop
        if stop and not self._rids:
            stop()

    def remaining(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


CALL: ContextVar[Call | None] = ContextVar("call", default=None)
"""The run that this thread is at."""
