"""Kept answers of one scenario, and one computation for identical requests in flight. Pure logic: no sockets, no asyncio; the clock is given.

Rules:

- Only a pure scenario has one (``check``): its answer follows from version, body, content type and language, which are the key. So a version
  that is promoted never gets its predecessor's answers.
- Identical requests of one priority share a computation, which belongs to none of them: each keeps its own deadline and may leave, and the
  computation is given up when nobody waits for it any more. One that runs into its own deadline is begun anew for those who have time left.
- Only answers are kept. An error goes to all who wait for it, and the next request asks the worker again.
- What is kept has at most ``size`` bytes, what holds it counted; who was asked for least recently goes first.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from scenarium.core.errors import ScenariumError
from scenarium.gateway.requests import Failure, Outcome, Priority, Request

if TYPE_CHECKING:
    from scenarium.core.config import ServeConfig
    from scenarium.core.manifest import Manifest

Found = Literal["hit", "miss", "joined"]
"""How a request was answered: from what is kept, by a computation of its own, or by one that another had begun."""
FOUND: tuple[Found, ...] = ("hit", "miss", "joined")
OVERHEAD = 640
"""Bytes of an entry beside body and content type: 540 were measured."""
AT_ONCE = 1 << 20
"""Bytes of a body that are hashed on the loop, in half a millisecond; a larger one is hashed in a thread."""
_FIRST = 1 << 62
"""Ids of computations: above those of requests, below those of probes."""


class Key(NamedTuple):
    """What an answer follows from."""

    version: int
    digest: bytes
    content_type: str
    language: str


class _Entry(NamedTuple):
    outcome: Outcome
    size: int
    until: float


class _Flight:
    """One computation and who waits for it, by id."""

    __slots__ = ("body", "epoch", "key", "priority", "waiters", "work")

    def __init__(self, key: Key, first: Request, epoch: int) -> None:
        self.key = key
        self.priority: Priority = first.priority
        self.body = first.body
        self.epoch = epoch
        self.waiters: dict[int, Request] = {}
        self.work = first
        """The request in the scenario's queue."""


def check(name: str, config: ServeConfig, manifest: Manifest) -> None:
    """See that answers may be kept where the settings ask for it.

    Raises:
        ScenariumError: SCN-4150 (the scenario is not pure).
    """
    if config.cache_size and not manifest.pure:
        raise ScenariumError("SCN-4150", name=name)


async def digest(body: bytes) -> bytes:
    """SHA-256 of a body."""
    if len(body) <= AT_ONCE:
        return hashlib.sha256(body).digest()
    return await asyncio.to_thread(lambda: hashlib.sha256(body).digest())


class Cache:
    """What ``submit`` of a service does, for identical requests once.

    ``compute`` takes a request into the scenario's queue, where it ends by its ``resolve``; ``drop`` ends it there. ``clock`` gives seconds.
    """

    def __init__(self, compute: Callable[[Request], None], drop: Callable[[Request], None], clock: Callable[[], float]) -> None:
        self.compute = compute
        self.drop = drop
        self.clock = clock
        self.size = 0
        self.ttl_s = self.limit_s = 0.0
        self.entries: OrderedDict[Key, _Entry] = OrderedDict()
        """Least recently asked for first."""
        self.bytes = 0
        self.waiting: dict[int, _Flight] = {}
        """What each request that has not ended waits for."""
        self.counts: dict[Found, int] = dict.fromkeys(FOUND, 0)
        self.evictions = 0
        """Entries that went for want of room, or of age."""
        self._flights: dict[tuple[Key, Priority], _Flight] = {}
        self._stalled: list[_Flight] = []
        self._numbers = itertools.count(_FIRST)
        self._epoch = 0

    def configure(self, config: ServeConfig) -> None:
        """Take over settings; what no longer fits goes."""
        self.size, self.ttl_s, self.limit_s = config.cache_size, config.cache_ttl_s, config.deadline_ms / 1000
        self._trim()

    def clear(self) -> None:
        """Forget all answers, those that are being computed too: other workers answer from now on."""
        self._epoch += 1
        self.entries.clear()
        self.bytes = 0

    def submit(self, request: Request, version: int, digest: bytes) -> Found:
        """Take a request in that ``version`` would answer. It ends by its ``resolve``, at once where its answer is kept."""
        key = Key(version, digest, request.content_type, request.language)
        found = self._take(request, key)
        self.counts[found] += 1
        return found

    def cancel(self, request: Request, failure: Failure = "cancelled") -> None:
        """End a request without an answer: its client left, or its deadline passed. Others who wait for the same are not touched."""
        flight = self.waiting.get(request.rid)
        if flight is None:
            return
        self._end(flight, request, Outcome(0, b"", failure=failure))
        if not flight.waiters:
            self._flights.pop((flight.key, flight.priority), None)
            self.drop(flight.work)

    def requests(self) -> list[Request]:
        """Every request that waits."""
        return [flight.waiters[rid] for rid, flight in self.waiting.items()]

    def sweep(self) -> None:
        """End what is past its deadline, and begin anew what others still wait for."""
        now = self.clock()
        for request in self.requests():
            if request.deadline <= now:
                self.cancel(request, "deadline")
        stalled, self._stalled = self._stalled, []
        for flight in stalled:
            if flight.waiters:
                self._begin(flight, next(iter(flight.waiters.values())))

    def _take(self, request: Request, key: Key) -> Found:
        entry = self.entries.get(key)
        if entry and entry.until > self.clock():
            self.entries.move_to_end(key)
            request.done = True
            request.resolve(entry.outcome)
            return "hit"
        if entry:
            self._evict(key)
        flight = self._flights.get((key, request.priority))
        begun = flight is not None
        if flight is None:
            flight = self._flights[key, request.priority] = _Flight(key, request, self._epoch)
        request.body = b""  # the computation has it
        flight.waiters[request.rid] = request
        self.waiting[request.rid] = flight
        if begun:
            return "joined"
        self._begin(flight, request)
        return "miss"

    def _begin(self, flight: _Flight, model: Request) -> None:
        """Ask for the answer, as ``model`` would."""
        now = self.clock()
        flight.work = work = Request(next(self._numbers), flight.body, now + self.limit_s, partial(self._ended, flight), now)
        work.content_type, work.language, work.priority = model.content_type, model.language, flight.priority
        work.key, work.trace, work.ident = model.key, model.trace, model.ident
        self.compute(work)

    def _ended(self, flight: _Flight, outcome: Outcome) -> None:
        """The computation ended."""
        now = self.clock()
        if outcome.failure == "deadline" and any(request.deadline > now for request in flight.waiters.values()):
            self._stalled.append(flight)  # for ``sweep``, since the queue may be at work on its own list now
            return
        self._flights.pop((flight.key, flight.priority), None)
        if outcome.failure is None and outcome.status == 200 and flight.epoch == self._epoch:
            # It is kept for the version that answered: another may have come while the request waited.
            self._keep(flight.key._replace(version=outcome.version), outcome, now)
        for request in list(flight.waiters.values()):
            self._end(flight, request, outcome)

    def _end(self, flight: _Flight, request: Request, outcome: Outcome) -> None:
        del flight.waiters[request.rid], self.waiting[request.rid]
        request.sent = flight.work.sent
        request.done = True
        request.resolve(outcome)

    def _keep(self, key: Key, outcome: Outcome, now: float) -> None:
        size = len(outcome.body) + len(key.content_type) + OVERHEAD
        if size > self.size:
            return
        old = self.entries.pop(key, None)
        self.bytes += size - (old.size if old else 0)
        self.entries[key] = _Entry(outcome, size, now + self.ttl_s)
        self._trim()

    def _trim(self) -> None:
        while self.bytes > self.size:
            self._evict(next(iter(self.entries)))

    def _evict(self, key: Key) -> None:
        self.bytes -= self.entries.pop(key).size
        self.evictions += 1
