"""When a request is sent again, and after how long. Pure logic.

What may be repeated: everything where the gateway can never have run it (no connection, 429, a queue that is full); beyond that only what
is safe to run twice, which is what a pure scenario does, reading, cancelling, and making a job with an idempotency key. The pause grows
exponentially with full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015), and lies after ``Retry-After``.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import httpx

from scenarium.client.errors import of_response

STATUSES = (429, 502, 503, 504)
UNTRAINED = ("SCN-4004", "SCN-5010")
"""Time does not heal these: nothing is trained."""
NEVER_RUN = ("SCN-4006", "SCN-4042", "SCN-4111", "SCN-4114", "SCN-4124", "SCN-4208")
"""Refusals (503) of what no worker has seen: the queue is full, no memory, too many connections, no audit log, too many jobs, unloaded."""
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError)


class Retry(NamedTuple):
    """How often and how long. ``Retry(attempts=1)`` never repeats."""

    attempts: int = 4
    """How often a request is sent at most."""
    base: float = 0.1
    """Seconds: the longest first pause; it doubles from one to the next."""
    cap: float = 5.0
    """Seconds: the longest pause, ``Retry-After`` left out."""
    patience: float = 30.0
    """Seconds: a longer ``Retry-After`` (a daily quota) is an error at once."""

    def pause(self, attempt: int, retry_after: float | None) -> float:
        """Seconds to wait after the ``attempt``-th failure, from 0."""
        return (retry_after or 0.0) + random.uniform(0, min(self.cap, self.base * 2**attempt))


def worth(failure: httpx.Response | httpx.TransportError) -> bool:
    """Whether the same request may fare better a little later."""
    if isinstance(failure, httpx.TransportError):
        return isinstance(failure, (*UNSENT, *BROKEN))
    return failure.status_code in STATUSES and of_response(failure).code not in UNTRAINED


def never_run(failure: httpx.Response | httpx.TransportError) -> bool:
    """Whether it is certain that nothing was done."""
    if isinstance(failure, httpx.TransportError):
        return isinstance(failure, UNSENT)
    return failure.status_code == 429 or (failure.status_code == 503 and of_response(failure).code in NEVER_RUN)
