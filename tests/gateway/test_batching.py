"""The queue's rules on a simulated clock: random schedules of arrivals, cancels, deadlines, poison, slow and dying workers."""

from __future__ import annotations

import heapq
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import pytest

from scenarium.core.registry import Plugin, Registry
from scenarium.core.runtime import Runtime
from scenarium.core.settings import Settings
from scenarium.gateway.batching import AGE_S, Batcher, seat_of
from scenarium.gateway.requests import PRIORITIES, Outcome, Priority, Request

GRACE = 5.0


def runtimes(folder: Path) -> dict[bool, Runtime]:
    """The scapegoat plugin, loaded: as it is, and (True) with one answer too few for every batch of several."""
    (folder / "weights.bin").write_bytes(b"x")
    found = {}
    for wrong in (False, True):
        sets = [f"scenarios.unit.model.wrong_count={json.dumps(wrong)}"]
        plugin = Plugin("unit", str(Path(__file__).parent / "plugins" / "unit.py"), "scenarium-unit", "0.1.0")
        scenario = Registry(Settings.read(environ={}, sets=sets), {"unit": plugin}).scenario("unit")
        found[wrong] = Runtime(scenario, {}, folder)
    return found


@dataclass
class Worker:
    """A simulated worker: it answers each batch after a while, unless the batch holds what kills or hangs it."""

    world: World
    max_batch: int
    concurrency: int
    pure: bool
    version: int = 1
    seat: int = 0
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
            seats = [each.slot.seat for each in world.batcher.workers.values() if not each.retired]
            assert not request.key or len(seats) < 2 or seat_of(request.key, seats) == self.seat, "it went past its key's worker"
            world.runs[request.rid] = world.runs.get(request.rid, 0) + 1
            world.neighbours[request.rid] = {world.kinds[other.rid] for other in batch if other is not request}
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

    models: dict[bool, Runtime] | None = None
    """Real runtimes for the batches in which an item raises or the number of answers is wrong."""

    def __init__(
        self,
        seed: int,
        pure: bool,
        max_batch: int,
        concurrency: int,
        queue_size: int,
        workers: int,
        max_delay: float,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], object]]] = []
        self.order = 0
        self.pure, self.max_batch, self.concurrency = pure, max_batch, concurrency
        self.batcher = Batcher(queue_size, max_delay, GRACE)
        self.outcomes: dict[int, list[Outcome]] = {}
        self.kinds: dict[int, str] = {}
        self.runs: dict[int, int] = {}
        self.neighbours: dict[int, set[str]] = {}
        self.requests: dict[int, Request] = {}
        self.ended: dict[int, float] = {}
        self.alive: list[Worker] = []
        for _ in range(workers):
            self.spawn()

    def at(self, when: float, what: Callable[[], object]) -> None:
        self.order += 1
        heapq.heappush(self.events, (when, self.order, what))

    def spawn(self) -> None:
        seat = min(set(range(len(self.alive) + 1)) - {worker.seat for worker in self.alive})
        worker = Worker(self, self.max_batch, self.concurrency, self.pure, seat=seat)
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
        answers = dict(zip(rids, self.answers(rids), strict=True))
        self.rng.shuffle(rids)  # items are answered singly, in any order
        for rid in rids:
            worker.open -= 1
            self.batcher.answered(worker, rid, answers[rid])
        self.batcher.pump(self.now)

    def answers(self, rids: list[int]) -> list[Outcome]:
        """What the real runtime makes of the batch."""
        kinds = [self.kinds[rid] for rid in rids]
        if self.models is None or not {"raise", "wrong"} & set(kinds):
            return [Outcome(200, f"answer {rid}".encode(), 1) for rid in rids]
        runtime = self.models["wrong" in kinds]
        runtime.traits = replace(runtime.traits, pure=self.pure)
        asks = [runtime.schema.request(text=f"answer {rid}", do="raise" if kind == "raise" else "answer") for rid, kind in zip(rids, kinds, strict=True)]
        return [Outcome(500, b"") if isinstance(each, Exception) else Outcome(200, each.text.encode(), 1) for each in runtime.predict(asks)]

    def submit(self, rid: int, kind: str, life: float, priority: Priority = "normal", key: str = "") -> None:
        self.kinds[rid] = kind
        outcomes = self.outcomes.setdefault(rid, [])

        def resolve(outcome: Outcome) -> None:
            outcomes.append(outcome)
            self.ended[rid] = self.now

        request = Request(rid, b"", self.now + life, resolve, self.now)
        request.priority, request.key = priority, key
        self.requests[rid] = request
        self.batcher.submit(request, self.now)

    def run(self, until: float) -> None:
        """Play events in order, with a sweep every 10 ms as the gateway does while it holds something."""
        sweep = self.now
        while self.now < until:
            if self.events and self.events[0][0] <= sweep:
                when, _, what = heapq.heappop(self.events)
                self.now = max(self.now, when)
                what()
                continue
            self.now = sweep
            self.batcher.sweep(self.now)
            if not self.batcher.busy:  # the clock jumps to what comes next
                if not self.events:
                    return
                sweep = max(sweep, self.events[0][0])
            else:
                sweep += 0.01 if self.events else 0.1

    def swap(self) -> None:
        """A new version: new workers beside the old, then the old retire."""
        old = list(self.alive)
        for _ in old:
            self.spawn()
        for worker in old:
            self.alive.remove(worker)
            self.batcher.retire(worker)


class Step(NamedTuple):
    """One request of a schedule."""

    when: float
    kind: str
    life: float
    cancel: float | None
    priority: Priority
    key: str


KINDS = ["ok"] * 12 + ["poison", "hang", "slow", "raise", "wrong"]


def play(seed: int, models: dict[bool, Runtime]) -> None:
    """One random schedule of arrivals, cancels, deadlines, poison, wrong answers, slow members, worker kills and swaps."""
    rng = random.Random(seed)
    pure = rng.random() < 0.5
    keys = rng.choice([[""], ["", "a", "b", "c", "d"]])
    lives, cancels = [0.02, 0.2, 30, 30, 30], [None, None, None, 0.0, 0.005, 0.05]
    steps = [
        Step(rng.random(), rng.choice(KINDS), rng.choice(lives), rng.choice(cancels), rng.choice(PRIORITIES), rng.choice(keys))
        for _ in range(rng.randint(1, 24))
    ]
    kills, swaps = [rng.random() for _ in range(rng.randint(0, 3))], [rng.random() for _ in range(rng.randint(0, 2))]
    sizes = (rng.choice([1, 4, 32]), rng.choice([0, 0, 3]), rng.choice([2, 16, 256]), rng.choice([1, 2]), rng.choice([0.0, 0.02]))
    world = World(seed, pure, *sizes)
    world.models = models
    for rid, step in enumerate(steps):
        world.at(step.when, lambda rid=rid, step=step: world.submit(rid, step.kind, step.life, step.priority, step.key))
        if step.cancel is not None:
            world.at(step.when + step.cancel, lambda rid=rid: world.batcher.cancel(world.requests[rid]))
    for when in kills:
        world.at(when, lambda: world.alive and world.die(world.rng.choice(world.alive)))
    for when in swaps:
        world.at(when, world.swap)
    world.run(200.0)
    assert world.batcher.live == world.batcher.depth == world.batcher.keyed == 0
    assert not world.batcher.requests()
    untouched = not kills and not swaps
    for rid, step in enumerate(steps):
        check(world, rid, step, untouched, untouched and all(each.kind in ("ok", "slow", "raise") for each in steps))


def check(world: World, rid: int, step: Step, untouched: bool, calm: bool) -> None:
    """It ended once, with its own answer or its own error, in time, and ran no more often than it may. ``untouched``: no worker was killed from
    outside, or swapped; ``calm``: nor by a request."""
    outcomes, runs = world.outcomes[rid], world.runs.get(rid, 0)
    assert len(outcomes) == 1, f"it ended {len(outcomes)} times"
    outcome = outcomes[0]
    assert world.ended[rid] - step.when <= step.life + 0.1
    if outcome.status == 200:
        assert outcome.body == f"answer {rid}".encode()
    if outcome.status == 500:
        assert step.kind in ("raise", "wrong") or "wrong" in world.neighbours[rid] or (not world.pure and "raise" in world.neighbours[rid])
    assert runs <= (2 if world.pure else 1), "at most one rerun, and none where the scenario is not pure"
    assert outcome.failure != "busy" or runs == 0
    assert outcome.failure != "cancelled" or step.cancel is not None
    assert outcome.failure != "died" or not world.pure
    assert outcome.failure != "poison" or (world.pure and runs == 2)
    assert outcome.failure != "poison" or not untouched or step.kind == "poison", "it was blamed for another's deed"
    if step.kind in ("poison", "hang"):
        assert outcome.failure is not None
    if calm and step.kind == "ok" and step.life == 30 and step.cancel is None and world.pure:
        assert outcome.status == 200 or outcome.failure == "busy"


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_every_request_ends_once_with_its_own_answer(block, tmp_path):
    """10 000 schedules."""
    models = runtimes(tmp_path)
    began = time.process_time()
    for seed in range(block * 1000, block * 1000 + 1000):
        try:
            play(seed, models)
        except AssertionError as fault:
            raise AssertionError(f"schedule {seed}: {fault}") from fault
    assert time.process_time() - began < 6, "a minute for all"


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


def test_the_neighbours_of_an_item_that_never_ends_are_run_again():
    world = quiet()
    world.submit(0, "ok", 30)
    for rid in range(1, 9):
        world.submit(rid, "hang" if rid == 3 else "ok", 0.5 if rid == 3 else 30)
    world.requests[4].stream = lambda part: None  # nothing of it came yet
    world.run(60)
    assert {rid: found[0].failure or found[0].status for rid, found in world.outcomes.items()} == {rid: "deadline" if rid == 3 else 200 for rid in range(9)}
    assert max(world.ended.values()) < 0.5 + GRACE + 1
    assert world.runs == {0: 1, 3: 1} | dict.fromkeys((1, 2, 4, 5, 6, 7, 8), 2)


@pytest.mark.parametrize("case", ["long as others before", "not pure", "a stream that has begun"])
def test_a_batch_is_not_ended_for_one_of_its_clients_where_its_neighbours_would_pay(case):
    world = quiet(pure=case != "not pure")
    if case == "long as others before":
        world.batcher.longest = 20_000_000
    world.submit(0, "ok", 60)
    for rid in (1, 2):
        world.submit(rid, "hang", 60)
    world.run(1)
    if case == "a stream that has begun":
        world.requests[2].stream = lambda part: None
        world.batcher.part(world.alive[0], 2, b"1")
    world.batcher.cancel(world.requests[1])
    world.run(30)
    assert not world.outcomes[2]
    assert world.alive[0].cancelled == {1}
    assert world.alive[0].open == 2


def closed_loop(world: World, clients: int, until: float) -> list[int]:
    """Batch sizes where each client asks again 1 ms after its answer."""
    sizes: list[int] = []
    world.batcher.batch_sizes = sizes.append
    world.batcher.wake = lambda when: world.at(when, lambda: world.batcher.pump(world.now))
    rids = iter(range(10**6))

    def ask() -> None:
        rid = next(rids)
        world.submit(rid, "ok", 30)
        resolve = world.requests[rid].resolve
        world.requests[rid].resolve = lambda outcome: (resolve(outcome), world.now < until and world.at(world.now + 0.001, ask))[0]

    for _ in range(clients):
        ask()
    world.run(until + 1)
    return sizes


def test_waiting_for_a_fuller_batch_is_opt_in():
    """Clients that come back together are two halves for a worker that never waits, one batch for one that does."""
    assert max(closed_loop(quiet(), 8, 2.0)[4:20]) < 8
    assert closed_loop(quiet(max_delay=0.005), 8, 2.0)[4:20] == [8] * 16


def test_a_batch_goes_as_soon_as_all_are_there_or_the_delay_is_over():
    world = quiet(max_delay=0.02, max_batch=64)
    closed_loop(world, 4, 1.0)
    waits = [request.sent - request.entered for rid, request in world.requests.items() if 20 < rid < 60]
    assert max(waits) < 0.0001, "nobody else was to come"
    world.submit(10**6, "ok", 30)
    world.run(world.now + 1)
    alone = world.requests[10**6]
    assert alone.sent - alone.entered == pytest.approx(0.02), "three more might have come"


def test_one_client_never_waits():
    world = quiet(max_delay=0.02)
    closed_loop(world, 1, 1.0)
    assert all(request.sent == request.entered for request in world.requests.values())


def test_no_worker_idles_while_another_has_everything():
    world = quiet(workers=2, max_batch=32)
    sizes = closed_loop(world, 32, 2.0)
    assert max(sizes[2:]) <= 16


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


def test_a_worker_that_is_away_moves_its_own_keys_alone_and_who_takes_its_place_has_them_again():
    keys = [f"session-{n}" for n in range(4000)]
    before = {key: seat_of(key, (0, 1, 2, 3)) for key in keys}
    assert all(abs(count - 1000) < 120 for count in Counter(before.values()).values())  # four standard deviations: 110
    without = {key: seat_of(key, (0, 2, 3)) for key in keys}
    assert {key for key in keys if without[key] != before[key]} == {key for key in keys if before[key] == 1}
    assert {key: seat_of(key, (0, 2, 3, 1)) for key in keys} == before  # a new process comes last


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


def test_priority_orders_what_waits_and_starves_nobody():
    world = quiet(max_batch=1, queue_size=10_000)
    world.submit(0, "ok", 30.0)
    for rid, priority in ((1, "low"), (2, "normal"), (3, "high")):
        world.submit(rid, "ok", 30.0, priority)
    world.run(1.0)
    assert sorted((1, 2, 3), key=lambda rid: world.ended[rid]) == [3, 2, 1]
    # More comes at high priority than one worker can do; what came low gets its turn before what came 2 × AGE_S later.
    began = world.now
    world.submit(9, "ok", 600.0)
    world.submit(10, "ok", 600.0, "low")
    for n in range(2000):
        world.at(began + n * 0.01, lambda n=n: world.submit(100 + n, "ok", 600.0, "high"))
    world.run(began + 60.0)
    before = [rid for rid, ended in world.ended.items() if rid >= 100 and ended < world.ended[10]]
    assert len(before) == pytest.approx(2 * AGE_S / 0.01, abs=2)
