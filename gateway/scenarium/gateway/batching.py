"""The queue of one scenario: who runs when, and how each request ends. Pure logic: no sockets, no clock, no asyncio.

Time comes in as ``now`` (seconds, any monotonic clock); what is to be done goes out through ``Slot.send``, ``Slot.cancel``,
``Slot.kill`` and ``Request.resolve``. So the same code runs in the gateway and, on a simulated clock, in a property test.

Rules:

- A free worker takes whatever waits, up to its ``max_batch`` and its share of all that is open, so that none idles while another has
  everything; while it works the next batch gathers.
- ``max_delay`` is opt-in: a free worker waits so long at most for its share of as many requests as were lately open at once, since clients
  that ask again when they are answered all come back a moment after a batch.
- Every request ends exactly once: answered, or with its own error.
- A cancelled or expired request is never sent to a worker.
- A ``high`` request counts as if it had come ``AGE_S`` earlier, a ``low`` one as if it had come that much later, and who came first
  goes first. So priority orders what waits, and nobody waits more than ``AGE_S`` (twice that, low behind high) longer for it.
- A worker's death: the live requests of a pure scenario become suspects, which run before all others and alone; one that is alone
  when a worker dies a second time fails. Where the scenario is not pure nothing is run again.
- A worker that works for ``grace`` seconds on what nobody waits for any more hangs, and is killed, where it holds nothing else; its live
  neighbours are run again where the scenario is pure and this takes twice as long as any answer before, so that nobody pays for a client
  that left a batch that is merely long.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection
from typing import Protocol

from scenarium.gateway.requests import PRIORITIES, Failure, Outcome, Priority, Request

AGE_S = 5.0
FADING = 0.8


class Slot(Protocol):
    """A worker, as the queue sees it."""

    version: int
    max_batch: int
    concurrency: int
    """Open items it may hold; 0: one batch at a time."""
    pure: bool
    seat: int
    """Its number among the workers of its version, which whoever takes its place after it inherits."""

    def send(self, batch: list[Request], now: float) -> None:
        """Give it a batch."""

    def cancel(self, request: Request) -> None:
        """Tell it that nobody waits for this answer any more."""

    def kill(self) -> None:
        """End it at once; its death is reported by ``Batcher.lost``."""

    def release(self) -> None:
        """It was retired and holds nothing any more."""


def seat_of(key: str, seats: Collection[int]) -> int:
    """Whose a routing key is, by rendezvous hashing (Thaler & Ravishankar 1998): a worker that is away moves no key but its own, and every
    gateway with as many workers deals alike."""
    return max(seats, key=lambda seat: hashlib.blake2b(f"{seat}/{key}".encode("utf8", "surrogatepass"), digest_size=8).digest())


def _turn(lane: deque[Request]) -> float:
    """When the first of a lane counts as having come."""
    first = lane[0]
    return first.entered + (AGE_S if first.priority == "low" else -AGE_S if first.priority == "high" else 0.0)


class _Worker:
    """A slot with what it holds."""

    __slots__ = ("ended", "gathers", "open", "retired", "slot")

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.open: dict[int, Request] = {}
        self.retired = False
        self.gathers: float | None = None
        """Since when it waits, free, for more."""
        self.ended: dict[int, float] = {}
        """Which of ``open`` have ended without its answer, and when that was seen."""

    def room(self) -> int:
        """How many more items it may take now."""
        if self.retired:
            return 0
        if self.slot.concurrency:
            return self.slot.concurrency - len(self.open)
        return 0 if self.open else self.slot.max_batch


class Batcher:
    """The queue of one scenario and the workers that serve it."""

    def __init__(self, queue_size: int, max_delay: float = 0.0, grace: float = 5.0) -> None:
        self.queue_size = queue_size
        self.max_delay = max_delay
        self.grace = grace
        self.waiting: dict[Priority, deque[Request]] = {priority: deque() for priority in PRIORITIES}
        self.suspects: deque[Request] = deque()
        self.workers: dict[int, _Worker] = {}
        self.depth = 0
        """Live requests that wait; ``waiting`` may hold ended ones too, which are dropped when they are reached."""
        self.live = 0
        """Requests that have not ended."""
        self.keyed = 0
        """Waiting requests that have a routing key."""
        self.closed = False
        self.longest = 0
        """Microseconds that a worker took at most for an answer, streams excepted."""
        self.crowd = 0.0
        """As many requests as were lately open at once: the most, fading with every batch."""
        self.batch_sizes: Callable[[int], None] = lambda size: None
        self.wake: Callable[[float], None] = lambda when: None
        """Asks for a ``pump`` at a time."""

    def submit(self, request: Request, now: float) -> None:
        """Take a request in; it ends with ``busy`` at once if the queue is full."""
        self.live += 1
        request.home = self
        if self.depth >= self.queue_size or self.closed:
            self._end(request, Outcome(0, b"", failure="stopped" if self.closed else "busy"))
            return
        self.crowd = max(self.live, self.crowd)
        self.waiting[request.priority].append(request)
        self._queued(request)
        self.pump(now)

    def cancel(self, request: Request, failure: Failure = "cancelled") -> None:
        """End a request without an answer: its client left, or its deadline passed."""
        if request.done:
            return
        worker = request.slot
        self._end(request, Outcome(0, b"", failure=failure))
        if worker:
            worker.slot.cancel(request)

    def add(self, slot: Slot, now: float) -> None:
        """A worker is ready."""
        self.workers[id(slot)] = _Worker(slot)
        self.pump(now)

    def retire(self, slot: Slot) -> None:
        """Give this worker nothing more; ``slot.release`` is called when it holds nothing."""
        worker = self.workers.get(id(slot))
        if worker and not worker.retired:
            worker.retired = True
            self._released(worker)

    def part(self, slot: Slot, rid: int, chunk: bytes) -> None:
        """A part of a streamed answer came."""
        request = self.find(slot, rid)
        if request and not request.done and request.stream:
            request.begun = True
            request.stream(chunk)

    def find(self, slot: Slot, rid: int) -> Request | None:
        """The request that a worker holds."""
        worker = self.workers.get(id(slot))
        return worker.open.get(rid) if worker else None

    def holds(self, slot: Slot) -> bool:
        """Whether a worker has anything to do."""
        worker = self.workers.get(id(slot))
        return bool(worker and worker.open)

    def answered(self, slot: Slot, rid: int, outcome: Outcome) -> bool:
        """A worker answered one item. Call ``pump`` when all that came together are in. False: nobody waits for it."""
        worker = self.workers.get(id(slot))
        request = worker.open.pop(rid, None) if worker else None
        if worker is None or request is None:
            return False
        self._released(worker)
        if not request.stream:
            self.longest = max(self.longest, sum(outcome.times))
        if request.done:
            worker.ended.pop(rid, None)
            return False
        self._end(request, outcome)
        return True

    def lost(self, slot: Slot, now: float) -> None:
        """A worker died. Its live requests run again or end."""
        worker = self.workers.pop(id(slot), None)
        if worker is None:
            return
        live = [request for request in worker.open.values() if not request.done]
        for request in reversed(live):
            request.slot = None
            if not slot.pure or request.begun:
                self._end(request, Outcome(0, b"", slot.version, failure="died"))
            elif request.suspect:
                self._end(request, Outcome(0, b"", slot.version, failure="poison"))
            else:
                request.suspect = True
                self.suspects.appendleft(request)
                self._queued(request)
        self.pump(now)

    def stop(self, failure: Failure = "stopped") -> None:
        """End everything that waits or runs."""
        for request in self.requests():
            self._end(request, Outcome(0, b"", failure=failure))
        self._clear()

    def close(self) -> None:
        """Take nothing in any more, and end everything."""
        self.closed = True
        self.stop()

    def sweep(self, now: float) -> None:
        """End what is past its deadline, kill what hangs, and send what has waited long enough."""
        for queue in (self.suspects, *self.waiting.values()):
            for request in queue:
                if not request.done and request.deadline <= now:
                    self.cancel(request, "deadline")
        for worker in list(self.workers.values()):
            for request in list(worker.open.values()):
                if not request.done and request.deadline <= now:
                    self.cancel(request, "deadline")
                if request.done:
                    worker.ended.setdefault(request.rid, now)
            if worker.ended and self._hangs(worker, now):
                worker.slot.kill()
        self.pump(now)

    def _hangs(self, worker: _Worker, now: float) -> bool:
        """Whether it works on what nobody waits for, and may be killed for it."""
        late = [worker.open[rid] for rid, since in worker.ended.items() if now - since >= self.grace]
        live = [request for request in worker.open.values() if not request.done]
        if not late or not live:
            return bool(late)
        return worker.slot.pure and not any(request.begun for request in live) and now - min(each.sent for each in late) > 2e-6 * self.longest

    @property
    def busy(self) -> bool:
        """Whether anything waits, or a worker holds anything."""
        return self.live > 0 or any(worker.open for worker in self.workers.values())

    def requests(self) -> list[Request]:
        """Every request that has not ended."""
        queues = (self.suspects, *self.waiting.values(), *(worker.open.values() for worker in self.workers.values()))
        return [request for queue in queues for request in queue if not request.done]

    def pump(self, now: float) -> None:
        """Give work to every worker that has room."""
        if not self.depth:
            self._clear()
            return
        for worker in self.workers.values():
            room = worker.room()
            if room <= 0:
                continue
            batch = self._take(worker, room, now)
            if not batch:
                continue
            for request in batch:
                request.slot = worker
                request.sent = now
                worker.open[request.rid] = request
            worker.gathers = None
            self.crowd = max(self.live, FADING * self.crowd)
            self.batch_sizes(len(batch))
            worker.slot.send(batch, now)
            if not self.depth:
                return

    def _take(self, worker: _Worker, room: int, now: float) -> list[Request]:
        if self.suspects:
            return [] if worker.open else self._next(worker, (self.suspects,), 1, now)
        if any(request.suspect for request in worker.open.values()):
            return []  # a suspect runs alone
        if not worker.slot.concurrency:
            if self.max_delay and self._gathers(worker, room, now):
                return []
            room = min(room, self._share(self.live))
        return self._next(worker, tuple(self.waiting.values()), room, now)

    def _gathers(self, worker: _Worker, room: int, now: float) -> bool:
        """Whether a free worker waits for more than waits now."""
        if self.depth >= min(room, self._share(round(self.crowd))):
            return False
        if worker.gathers is None:
            worker.gathers = now
            self.wake(now + self.max_delay)
        return now < worker.gathers + self.max_delay

    def _share(self, requests: int) -> int:
        """One worker's share of so many."""
        return requests if len(self.workers) == 1 else -(-requests // max(1, sum(not each.retired for each in self.workers.values())))

    def _next(self, worker: _Worker, lanes: tuple[deque[Request], ...], room: int, now: float) -> list[Request]:
        """Up to ``room`` live requests off the lanes; those past their deadline end here."""
        batch: list[Request] = []
        others: list[tuple[deque[Request], Request]] = []
        """Those whose key belongs to another worker."""
        home = [each.slot.seat for each in self.workers.values() if not each.retired] if self.keyed and len(self.workers) > 1 else []
        while len(batch) < room:
            filled = [lane for lane in lanes if lane]
            if not filled:
                break
            lane = filled[0] if len(filled) == 1 else min(filled, key=_turn)
            request = lane.popleft()
            if request.done:
                continue
            if request.deadline <= now:
                self._end(request, Outcome(0, b"", failure="deadline"))
                continue
            if home and request.key and seat_of(request.key, home) != worker.slot.seat:
                others.append((lane, request))
                continue
            self._unqueued(request)
            batch.append(request)
        for lane, request in reversed(others):
            lane.appendleft(request)
        return batch

    def _clear(self) -> None:
        """Drop what has ended; nothing waits."""
        self.suspects.clear()
        for lane in self.waiting.values():
            lane.clear()
        for worker in self.workers.values():
            worker.gathers = None

    def _queued(self, request: Request) -> None:
        request.queued = True
        self.depth += 1
        self.keyed += bool(request.key)

    def _unqueued(self, request: Request) -> None:
        request.queued = False
        self.depth -= 1
        self.keyed -= bool(request.key)

    def _end(self, request: Request, outcome: Outcome) -> None:
        request.done = True
        self.live -= 1
        if request.queued:
            self._unqueued(request)
        request.resolve(outcome)

    def _released(self, worker: _Worker) -> None:
        if worker.retired and not worker.open and id(worker.slot) in self.workers:
            del self.workers[id(worker.slot)]
            worker.slot.release()
