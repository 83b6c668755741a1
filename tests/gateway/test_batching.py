"""The queue's rules on a simulated clock: random schedules of arrivals, cancels, deadlines, poison, slow and dying workers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scenarium.gateway.batching import Batcher, Outcome, Request

GRACE = 5.0


@dataclass
class Worker:
    """A simulated worker: it answers each batch after a while, unless the batch holds what kills or hangs it."""

    world: World
    max_batch: int
    concurrency: int
    pure: bool
    version: int = 1
    dead: bool = False
    released: bool = False
    cancelled: set[int] = field(default_factory=set)
    open: int = 0

    def send(self, batch: list[Request], now: float) -> None:
        world = self.world
        assert not self.dead
        assert not self.released
        self.open += len(batch)
        assert self.open <= (self.concurrency or self.max_batch)
        assert self.concurrency or self.open == len(batch), "a batch worker holds one batch at a time"
        for request in batch:
            assert not request.done, "an ended request was sent"
            assert request.deadline > now
            world.runs[request.rid] = world.runs.get(request.rid, 0) + 1
        if any(request.suspect for request in batch):
            assert len(batch) == self.open == 1, "a suspect runs alone"
        kinds = {world.kinds[request.rid] for request in batch}
        if "poison" in kinds:
            world.at(now + 0.01, lambda: world.die(self))
        elif "hang" in kinds:
            return
        else:
            slow = 3.0 if "slow" in kinds else world.rng.uniform(0.001, 0.05)
            world.at(now + slow, lambda: world.finish(self, [request.rid for request in batch]))

    def cancel(self, request: Request) -> None:
        self.cancelled.add(request.rid)

    def kill(self) -> None:
        self.world.at(self.world.now + 0.01, lambda: self.world.die(self))

    def release(self) -> None:
        assert self.open == 0
        self.released = True


class World:
    """A clock, an event list, the queue under test, and what happened."""

    def __init__(self, seed: int, pure: bool, max_batch: int, concurrency: int, queue_size: int, workers: int, max_delay: float) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, object]] = []
        self.order = 0
        self.pure, self.max_batch, self.concurrency = pure, max_batch, concurrency
        self.batcher = Batcher(queue_size, max_delay, GRACE)
        self.outcomes: dict[int, list[Outcome]] = {}
        self.kinds: dict[int, str] = {}
        self.runs: dict[int, int] = {}
        self.requests: dict[int, Request] = {}
        self.killed = 0
        self.alive: list[Worker] = []
        for _ in range(workers):
            self.spawn()

    def at(self, when: float, what: object) -> None:
        self.order += 1
        self.events.append((when, self.order, what))

    def spawn(self) -> None:
        worker = Worker(self, self.max_batch, self.concurrency, self.pure)
        self.alive.append(worker)
        self.batcher.add(worker, self.now)

    def die(self, worker: Worker) -> None:
        if worker.dead:
            return
        worker.dead = True
        if worker in self.alive:
            self.alive.remove(worker)
        self.batcher.lost(worker, self.now)
        if not worker.released:
            self.at(self.now + 0.05, self.spawn)

    def finish(self, worker: Worker, rids: list[int]) -> None:
        if worker.dead:
            return
        self.rng.shuffle(rids)  # items are answered singly, in any order
        for rid in rids:
            worker.open -= 1
            self.batcher.answered(worker, rid, Outcome(200, f"answer {rid}".encode(), 1))
        self.batcher.pump(self.now)

    def submit(self, rid: int, kind: str, life: float) -> None:
        self.kinds[rid] = kind
        request = Request(rid, b"", self.now + life, self.outcomes.setdefault(rid, []).append, self.now)
        self.requests[rid] = request
        self.batcher.submit(request, self.now)

    def run(self, until: float) -> None:
        """Play events in order, with a sweep every 10 ms as the gateway does."""
        sweep = self.now
        while self.now < until:
            self.events.sort(key=lambda event: event[:2])
            if self.events and self.events[0][0] <= sweep:
                when, _, what = self.events.pop(0)
                self.now = max(self.now, when)
                what()  # type: ignore[operator]
            else:
                self.now = sweep
                self.batcher.sweep(self.now)
                # While nothing happens the clock may jump: a sweep then does nothing but look at deadlines.
                sweep += 0.01 if self.events or self.now < 1.5 else 0.25

    def swap(self) -> None:
        """A new version: new workers beside the old, then the old retire."""
        old = list(self.alive)
        for _ in old:
            self.spawn()
        for worker in old:
            self.alive.remove(worker)
            self.batcher.retire(worker)


step = st.tuples(
    st.floats(0, 1.0),
    st.sampled_from(["ok"] * 12 + ["poison", "hang", "slow"]),
    st.sampled_from([0.02, 0.2, 30.0, 30.0, 30.0]),
    st.sampled_from([None, None, None, 0.0, 0.005, 0.05]),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(step, min_size=1, max_size=40),
    kills=st.lists(st.floats(0, 1.0), max_size=3),
    swaps=st.lists(st.floats(0, 1.0), max_size=2),
    seed=st.integers(0, 1 << 30),
    pure=st.booleans(),
    max_batch=st.sampled_from([1, 4, 32]),
    concurrency=st.sampled_from([0, 0, 3]),
    queue_size=st.sampled_from([2, 16, 256]),
    workers=st.sampled_from([1, 2]),
    max_delay=st.sampled_from([0.0, 0.02]),
)
def test_every_request_ends_once_with_its_own_answer(steps, kills, swaps, seed, pure, max_batch, concurrency, queue_size, workers, max_delay):
    world = World(seed, pure, max_batch, concurrency, queue_size, workers, max_delay)
    for rid, (when, kind, life, cancel) in enumerate(steps):
        world.at(when, lambda rid=rid, kind=kind, life=life: world.submit(rid, kind, life))
        if cancel is not None:
            world.at(when + cancel, lambda rid=rid: world.batcher.cancel(world.requests[rid]))
    for when in kills:
        world.at(when, lambda: world.alive and world.die(world.rng.choice(world.alive)))
    for when in swaps:
        world.at(when, world.swap)
    world.run(60.0)
    assert world.batcher.live == world.batcher.depth == world.batcher.keyed == 0
    assert not world.batcher.waiting
    assert not world.batcher.suspects
    for rid, (_, kind, life, cancel) in enumerate(steps):
        outcomes = world.outcomes[rid]
        assert len(outcomes) == 1, f"request {rid} ended {len(outcomes)} times"
        outcome = outcomes[0]
        runs = world.runs.get(rid, 0)
        if outcome.status:
            assert outcome.body == f"answer {rid}".encode()
        assert runs <= (2 if pure else 1), "at most one rerun, and none where the scenario is not pure"
        assert outcome.failure != "busy" or runs == 0
        assert outcome.failure != "cancelled" or cancel is not None
        assert outcome.failure != "died" or not pure
        assert outcome.failure != "poison" or (pure and runs == 2)
        if kind in ("poison", "hang"):
            assert outcome.failure is not None
        if not kills and not swaps and kind == "ok" and all(k in ("ok", "slow") for _, k, _, _ in steps) and life == 30.0 and cancel is None:
            assert outcome.status == 200 or outcome.failure == "busy"


def quiet(pure: bool = True, **changes) -> World:
    return World(**{"seed": 0, "pure": pure, "max_batch": 8, "concurrency": 0, "queue_size": 64, "workers": 1, "max_delay": 0.0} | changes)


def test_a_poison_item_fails_alone_and_its_neighbours_are_answered():
    world = quiet()
    world.submit(0, "slow", 30)
    for rid in range(1, 8):
        world.submit(rid, "poison" if rid == 3 else "ok", 30)
    world.run(20)
    assert {rid: found[0].failure or found[0].status for rid, found in world.outcomes.items()} == {rid: "poison" if rid == 3 else 200 for rid in range(8)}
    assert world.runs[3] == 2


def test_nothing_is_rerun_where_the_scenario_is_not_pure():
    world = quiet(pure=False)
    world.submit(0, "slow", 30)
    for rid in range(1, 5):
        world.submit(rid, "poison" if rid == 3 else "ok", 30)
    world.run(20)
    assert [world.outcomes[rid][0].failure for rid in range(5)] == [None, "died", "died", "died", "died"]
    assert max(world.runs.values()) == 1


def test_a_queued_cancel_is_never_run():
    world = quiet()
    world.submit(0, "slow", 30)
    for rid in range(1, 21):
        world.submit(rid, "ok", 30)
        world.batcher.cancel(world.requests[rid])
    world.submit(21, "ok", 30)
    world.run(10)
    assert sorted(world.runs) == [0, 21]
    assert world.outcomes[21][0].status == 200


def test_a_full_queue_refuses_at_once_and_cancels_make_room():
    world = quiet(queue_size=2)
    world.submit(0, "slow", 30)
    for rid in (1, 2, 3):
        world.submit(rid, "ok", 30)
    assert world.outcomes[3][0].failure == "busy"
    world.batcher.cancel(world.requests[1])
    world.submit(4, "ok", 30)
    assert not world.outcomes[4]
    world.run(10)
    assert world.outcomes[4][0].status == 200


def test_a_hung_worker_is_killed_after_the_grace_and_the_queue_moves_on():
    world = quiet()
    world.submit(0, "hang", 0.5)
    world.run(1.0)
    assert world.outcomes[0][0].failure == "deadline"
    world.submit(1, "ok", 30)
    world.run(0.5 + GRACE)
    assert not world.outcomes[1]
    world.run(2 + GRACE)
    assert world.outcomes[1][0].status == 200


def test_waiting_for_a_fuller_batch_is_opt_in():
    for delay, expected in ((0.0, [1, 3]), (0.02, [4])):
        world = quiet(max_delay=delay)
        sizes: list[int] = []
        world.batcher.batch_sizes = sizes.append
        for rid in range(4):
            world.submit(rid, "ok", 30)
        world.run(1)
        assert sizes == expected


def test_one_key_goes_to_one_worker():
    world = quiet(workers=3, concurrency=4)
    homes: dict[str, set[int]] = {}
    for worker in world.alive:
        send = worker.send
        worker.send = lambda batch, now, worker=worker, send=send: ([homes.setdefault(r.key, set()).add(id(worker)) for r in batch], send(batch, now))  # type: ignore[method-assign]
    for rid in range(60):
        world.kinds[rid] = "ok"
        request = Request(rid, b"", world.now + 30, world.outcomes.setdefault(rid, []).append, world.now)
        request.key = f"session {rid % 12}"
        world.batcher.submit(request, world.now)
        world.run(world.now + 0.01)
    world.run(world.now + 5)
    assert all(found[0].status == 200 for found in world.outcomes.values())
    assert all(len(found) == 1 for found in homes.values())
    assert len({next(iter(found)) for found in homes.values()}) > 1


@pytest.mark.parametrize("concurrency", [0, 4])
def test_a_swap_loses_nothing_and_releases_the_old_workers(concurrency):
    world = quiet(concurrency=concurrency, workers=2)
    old = list(world.alive)
    for rid in range(200):
        world.at(rid * 0.005, lambda rid=rid: world.submit(rid, "ok", 30))
    world.at(0.5, world.swap)
    world.run(5)
    assert all(found[0].status == 200 for found in world.outcomes.values())
    assert all(worker.released for worker in old)
