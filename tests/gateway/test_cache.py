"""Kept answers: the rules on a simulated clock, over the real queue, and real gateways."""

from __future__ import annotations

import heapq
import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from scenarium.core.config import ServeConfig
from scenarium.core.errors import ScenariumError
from scenarium.core.manifest import Manifest
from scenarium.gateway.batching import Batcher
from scenarium.gateway.cache import OVERHEAD, Cache, check
from scenarium.gateway.requests import PRIORITIES, Outcome, Request

TICK = 0.01


class World:
    """A queue with one simulated worker, the cache before it, and a clock. ``act`` says what the worker does with a body."""

    version = 1
    max_batch = 4
    concurrency = 0
    pure = True

    def __init__(self, act: Callable[[bytes], tuple[float, Outcome | None]] | None = None, **config: float) -> None:
        self.now = 0.0
        self.act = act or (lambda body: (0.05, Outcome(200, b"answer to " + body, self.version)))
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.batcher = Batcher(64)
        self.cache = Cache(lambda work: self.batcher.submit(work, self.now), self.batcher.cancel, lambda: self.now)
        self.cache.configure(ServeConfig(**{"cache_size": 1 << 20, "cache_ttl_s": 60, "deadline_ms": 1000, **config}))
        self.batcher.add(self, 0.0)
        self.computed: list[bytes] = []
        self.ended: dict[int, tuple[float, Outcome]] = {}
        self.number = 0
        self.at(TICK, self.tick)

    # the worker ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, batch: list[Request], now: float) -> None:
        bodies = [(request.rid, request.body) for request in batch]
        self.computed += [body for _, body in bodies]
        found = [self.act(body) for _, body in bodies]
        if any(outcome is None for _, outcome in found):
            self.at(now + 0.01, self.die)
            return

        def answer() -> None:
            for (rid, _), (_, outcome) in zip(bodies, found, strict=True):
                assert outcome
                self.batcher.answered(self, rid, outcome)
            self.batcher.pump(self.now)

        self.at(now + max(seconds for seconds, _ in found), answer)

    def die(self) -> None:
        self.batcher.lost(self, self.now)
        self.batcher.add(self, self.now)

    def cancel(self, request: Request) -> None: ...

    def kill(self) -> None:
        self.die()

    def release(self) -> None: ...

    # the clock ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def at(self, when: float, what: Callable[[], None]) -> None:
        self.number += 1
        heapq.heappush(self.events, (when, self.number, what))

    def tick(self) -> None:
        self.batcher.sweep(self.now)
        self.cache.sweep()
        self.at(self.now + TICK, self.tick)

    def run(self, until: float) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, what = heapq.heappop(self.events)
            what()
        self.now = until

    def ask(self, body: bytes = b"a", deadline: float = 1.0, priority: str = "normal", version: int | None = None) -> tuple[Request, str]:
        self.number += 1
        rid = self.number

        def resolve(outcome: Outcome) -> None:
            assert rid not in self.ended, "it ended twice"
            self.ended[rid] = (self.now, outcome)

        request = Request(rid, body, self.now + deadline, resolve, self.now)
        request.priority = priority  # type: ignore[assignment]
        return request, self.cache.submit(request, version or self.version, body)

    def outcome(self, request: Request) -> Outcome:
        return self.ended[request.rid][1]


def test_identical_requests_are_computed_once_and_then_kept() -> None:
    world = World()
    asked = [world.ask() for _ in range(50)]
    other, found = world.ask(b"b")
    assert [how for _, how in asked] == ["miss"] + ["joined"] * 49
    assert found == "miss"
    world.run(0.2)
    assert {world.outcome(request) for request, _ in asked} == {Outcome(200, b"answer to a", 1)}
    assert world.outcome(other).body == b"answer to b"
    late, found = world.ask()
    assert (found, world.outcome(late).body) == ("hit", b"answer to a")
    assert world.computed == [b"a", b"b"]
    assert world.cache.counts == {"hit": 1, "miss": 2, "joined": 49}


def test_each_keeps_its_own_deadline_and_one_that_leaves_harms_nobody() -> None:
    world = World(lambda body: (0.5, Outcome(200, body, 1)))
    leader, _ = world.ask()
    hurried, _ = world.ask(deadline=0.1)
    patient, _ = world.ask()
    world.run(0.05)
    world.cache.cancel(leader)
    world.run(0.3)
    assert world.outcome(leader).failure == "cancelled"
    assert world.outcome(hurried).failure == "deadline"
    assert world.ended[hurried.rid][0] == pytest.approx(0.1, abs=TICK)
    world.run(0.6)
    assert world.outcome(patient).body == b"a"
    assert world.computed == [b"a"], "the computation was the leader's no more than the others'"


def test_what_nobody_waits_for_is_given_up() -> None:
    world = World()
    running = [world.ask(b"%d" % number)[0] for number in range(4)]
    queued, _ = world.ask(b"queued")
    for request in (*running, queued):
        world.cache.cancel(request)
    world.run(0.2)
    assert b"queued" not in world.computed
    assert not world.cache.entries
    assert not world.cache.waiting
    assert not world.batcher.live


def test_a_computation_past_its_deadline_is_begun_anew_for_who_came_later() -> None:
    took = iter((5.0, 0.1))
    world = World(lambda body: (next(took), Outcome(200, body, 1)), deadline_ms=1000)
    world.batcher.grace = 0.2  # the stuck worker is killed
    early, _ = world.ask()
    world.run(0.9)
    late, found = world.ask()
    assert found == "joined"
    world.run(1.9)
    assert world.outcome(early).failure == "deadline"
    assert world.outcome(late).body == b"a"
    assert len(world.computed) == 2


@pytest.mark.parametrize(
    ("outcome", "failure"),
    [(Outcome(422, b"problem", 1), None), (Outcome(500, b"problem", 1), None), (None, "poison")],
)
def test_an_error_goes_to_all_who_wait_and_is_not_kept(outcome: Outcome | None, failure: str | None) -> None:
    world = World(lambda body: (0.01, outcome))
    asked = [world.ask()[0] for _ in range(5)]
    world.run(0.5)
    for request in asked:
        assert (world.outcome(request).failure, world.outcome(request).status) == (failure, outcome.status if outcome else 0)
    assert not world.cache.entries
    assert world.ask()[1] == "miss"
    assert len(world.computed) == (2 if outcome else 3)  # at a death it is run once more, alone


def test_a_full_queue_ends_all_that_ask_for_it() -> None:
    world = World()
    world.batcher.queue_size = 0
    request, _ = world.ask()
    assert world.outcome(request).failure == "busy"
    assert not world.cache.waiting


def test_a_version_has_answers_of_its_own() -> None:
    world = World(lambda body: (0.05, Outcome(200, body, 2)))
    first, _ = world.ask(version=1)  # while it waited, the new version came
    world.run(0.1)
    assert world.outcome(first).version == 2
    assert world.ask(version=1)[1] == "miss"
    assert world.ask(version=2)[1] == "hit"


def test_what_is_computed_while_workers_change_is_not_kept() -> None:
    world = World()
    request, _ = world.ask()
    world.cache.clear()
    world.run(0.1)
    assert world.outcome(request).status == 200
    assert not world.cache.entries
    assert world.cache.bytes == 0


def test_priorities_do_not_wait_for_each_other() -> None:
    world = World()
    assert [world.ask(priority=priority)[1] for priority in PRIORITIES] == ["miss"] * 3
    world.run(0.2)
    assert [world.ask(priority=priority)[1] for priority in PRIORITIES] == ["hit"] * 3


def test_content_type_and_language_are_part_of_the_key() -> None:
    world = World()
    for change in ({}, {"content_type": "text/plain"}, {"language": "zh"}):
        request = Request(0, b"a", 1.0, lambda outcome: None, 0.0)
        for name, value in change.items():
            setattr(request, name, value)
        request.rid = len(world.cache.waiting)
        assert world.cache.submit(request, 1, b"a") == "miss"


def test_the_least_recently_asked_for_goes_first_and_age_counts() -> None:
    size = 3 * (OVERHEAD + len("application/json") + len(b"answer to a"))
    world = World(cache_size=size, cache_ttl_s=10)
    for body in (b"a", b"b", b"c"):
        world.ask(body)
        world.run(world.now + 0.1)
    assert world.cache.bytes == size
    assert world.ask(b"a")[1] == "hit"
    world.ask(b"d")
    world.run(1.0)
    assert (world.cache.bytes, world.cache.evictions) == (size, 1)
    assert [world.ask(body)[1] for body in (b"a", b"c", b"d")] == ["hit"] * 3
    assert world.ask(b"b")[1] == "miss"
    world.run(11.0)
    assert world.ask(b"a")[1] == "miss", "it is older than 10 s"
    world.cache.configure(ServeConfig(cache_size=0))
    assert (world.cache.bytes, len(world.cache.entries)) == (0, 0)


def test_an_answer_larger_than_the_whole_is_not_kept() -> None:
    world = World(lambda body: (0.01, Outcome(200, b"x" * 5000, 1)), cache_size=5000)
    world.ask()
    world.run(0.1)
    assert not world.cache.entries


@pytest.mark.parametrize("seed", range(5))
def test_each_of_many_random_requests_ends_once_with_its_own_answer(seed: int) -> None:
    """Bodies by their first letter: o answered, e an error, k kills the worker, s slow."""
    rng = random.Random(seed)

    def act(body: bytes) -> tuple[float, Outcome | None]:
        kind = body[:1]
        if kind == b"k":
            return 0.0, None
        seconds = rng.uniform(0.4, 3.0) if kind == b"s" else rng.uniform(0.001, 0.1)
        return seconds, Outcome(422 if kind == b"e" else 200, b"%d to %s" % (world.version, body), world.version)

    world = World(act, cache_size=20 * OVERHEAD, cache_ttl_s=2)
    asked: dict[int, tuple[Request, bytes, str]] = {}

    def arrive() -> None:
        body = rng.choice([b"o", b"o", b"o", b"o", b"e", b"k", b"s"]) + b"%d" % rng.randrange(15)
        request, found = world.ask(body, rng.uniform(0.02, 1.0), rng.choice(PRIORITIES))
        asked[request.rid] = (request, body, found)
        if rng.random() < 0.1:
            world.at(world.now + rng.uniform(0, 0.3), lambda: world.cache.cancel(request))
        assert world.cache.bytes <= world.cache.size
        assert world.cache.bytes == sum(entry.size for entry in world.cache.entries.values())
        flights = {id(flight): flight for flight in world.cache.waiting.values()}.values()
        assert len(flights) == len({(flight.key, flight.priority) for flight in flights}), "two computations of one request at once"
        assert {work.rid for work in world.batcher.requests()} <= {flight.work.rid for flight in flights}, "a computation for nobody"

    for _ in range(2000):
        world.at(rng.uniform(0, 40), arrive)
    for second in range(1, 40, 7):
        world.at(float(second), lambda: setattr(world, "version", world.version + 1))
        world.at(second + 0.5, world.cache.clear)
    world.run(60)
    assert set(world.ended) == set(asked)
    for rid, (request, body, found) in asked.items():
        when, outcome = world.ended[rid]
        assert when <= request.deadline + 2 * TICK
        if outcome.failure is None:
            assert outcome.body.endswith(b" to " + body)
            assert outcome.status == (422 if body[:1] == b"e" else 200)
        if found == "hit":
            assert (when, body[:1] in (b"o", b"s")) == (request.entered, True)
    assert not world.cache.waiting
    assert not world.batcher.live
    assert {found for *_, found in asked.values()} == {"hit", "miss", "joined"}
    assert len(world.computed) < len(asked) * 0.9


def test_only_a_pure_scenario_may_keep_answers() -> None:
    manifest = Manifest.model_construct(pure=False)
    check("chat", ServeConfig(), manifest)
    with pytest.raises(ScenariumError, match="SCN-4150") as caught:
        check("chat", ServeConfig(cache_size=1), manifest)
    assert "chat" in caught.value.title()


# ── real gateways ─────────────────────────────────────────────────────────────────────────────────────────────────────────

CACHED = "scenarios.unit.serve.cache_size=100000"


def cached(answer: httpx.Response) -> str | None:
    return answer.headers.get("x-scenarium-cache")


def figures(gateway, *names: str) -> list[float]:
    found = dict(line.rsplit(" ", 1) for line in gateway.client.get("/metrics").text.splitlines() if not line.startswith("#"))
    return [float(found[name]) for name in names]


def test_a_gateway_keeps_answers_until_another_version_is_served(lab, tmp_path) -> None:
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"}, CACHED, f"gateway.audit={tmp_path / 'audit.jsonl'}")
    gateway.ready("unit")
    trail = tmp_path / "trail"
    first, again = (gateway.ask("unit", "same", trail=str(trail)) for _ in range(2))
    assert [cached(first), cached(again)] == ["miss", "hit"]
    assert first.content == again.content
    assert first.headers["x-request-id"] != again.headers["x-request-id"]
    assert again.headers["x-scenarium-version"] == "1"
    assert trail.read_text().split() == ["same"]
    assert cached(gateway.ask("unit", "same", trail=str(trail), headers={"Accept-Language": "zh"})) == "miss"
    bad = [gateway.client.post("/scenarios/unit/predict", json={"txt": 1}) for _ in range(2)]
    assert [(each.status_code, cached(each)) for each in bad] == [(422, "miss")] * 2
    requests, hits, misses, size = figures(
        gateway,
        'scenarium_requests_total{outcome="ok",scenario="unit"}',
        'scenarium_cache_requests_total{result="hit",scenario="unit"}',
        'scenarium_cache_requests_total{result="miss",scenario="unit"}',
        'scenarium_cache_bytes{scenario="unit"}',
    )
    assert (requests, hits, misses) == (3, 1, 4)
    assert 2 * OVERHEAD < size <= 100000

    lab.publish("unit", settings={"model.answer": "two"})
    lab.until(lambda: gateway.ask("unit", "poll", n=time.monotonic_ns()).json()["answer"] == "two")
    fresh = gateway.ask("unit", "same", trail=str(trail))
    assert (cached(fresh), fresh.json()["answer"], fresh.headers["x-scenarium-version"]) == ("miss", "two", "2")
    gateway.stop()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    hit = next(line for line in lines if line.get("request_id") == again.headers["x-request-id"])
    assert hit["version"] == 1
    assert hit["answer"] == next(line for line in lines if line.get("request_id") == first.headers["x-request-id"])["answer"]


def test_many_clients_one_computation_and_a_leader_that_leaves(lab, tmp_path) -> None:
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"}, CACHED)
    gateway.ready("unit")
    trail = tmp_path / "trail"
    body = {"text": "slow", "do": "sleep", "seconds": 1.5, "trail": str(trail)}

    def leave() -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{gateway.url}/scenarios/unit/predict", json=body, timeout=0.2)

    with ThreadPoolExecutor(22) as pool:
        leader = pool.submit(leave)
        lab.until(trail.exists)
        asked = [pool.submit(gateway.client.post, "/scenarios/unit/predict", json=body) for _ in range(20)]
        hurried = pool.submit(gateway.client.post, "/scenarios/unit/predict", json=body, headers={"X-Scenarium-Deadline-Ms": "50"}).result()
        leader.result()
        answers = [future.result() for future in asked]
    assert (hurried.status_code, hurried.json()["code"]) == (504, "SCN-4007")
    assert [(each.status_code, cached(each)) for each in answers] == [(200, "joined")] * 20
    assert len({each.content for each in answers}) == 1
    assert trail.read_text().split() == ["slow"]
    lab.until(lambda: figures(gateway, 'scenarium_requests_total{outcome="cancelled",scenario="unit"}') == [1.0])


def test_a_scenario_that_is_not_pure_is_refused(lab) -> None:
    lab.publish("unit", settings={"model.pure": False})
    gateway = lab.start({"unit": "unit"}, CACHED)
    fault = gateway.wait_event("version_refused")
    assert fault["code"] == "SCN-4150"
    answer = gateway.ask("unit")
    assert (answer.status_code, answer.json()["code"]) == (500, "SCN-4150")


def test_kept_answers_count_for_limits_and_streams_are_not_kept(lab) -> None:
    from scenarium.gateway.keys import KeyFile, Rate

    lab.publish("unit")
    _, key = KeyFile(lab.folder / "keys.sqlite").create(rate=Rate(3, 60))
    gateway = lab.start({"unit": "unit"}, CACHED)
    headers = {"Authorization": f"Bearer {key}"}
    lab.until(lambda: gateway.client.get("/scenarios/unit/ready", headers=headers).status_code == 200)
    answers = [gateway.ask("unit", headers=headers) for _ in range(3)]
    assert [cached(each) for each in answers] == ["miss", "hit", "hit"]
    assert gateway.ask("unit", headers=headers).status_code == 429
    gateway.stop()

    lab.folder.joinpath("keys.sqlite").unlink()
    gateway = lab.start({"unit": "unit"}, CACHED)
    gateway.ready("unit")
    for _ in range(2):
        streamed = gateway.client.post("/scenarios/unit/stream", json={"text": "s"})
        assert (streamed.status_code, cached(streamed)) == (200, None)
    assert figures(gateway, 'scenarium_cache_requests_total{result="miss",scenario="unit"}') == [0.0]


def test_settings_of_the_cache_change_while_it_serves(lab) -> None:
    lab.publish("unit")
    file = lab.folder / "scenarios.toml"
    file.write_text("[scenarios.unit.serve]\ncache_size = 0\n")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    assert [cached(gateway.ask("unit")) for _ in range(2)] == [None, None]
    pid = gateway.ask("unit").json()["pid"]
    file.write_text("[scenarios.unit.serve]\ncache_size = 10000\n")
    assert gateway.client.post("/admin/reload", json={}).json()["changed"] == ["unit"]
    assert [cached(gateway.ask("unit")) for _ in range(2)] == ["miss", "hit"]
    assert gateway.ask("unit").json()["pid"] == pid, "no worker was replaced"


def test_a_rollout_gets_kept_answers_of_the_version_that_its_key_is_due(lab) -> None:
    from scenarium.core import rollouts
    from scenarium.core.rollouts import in_canary

    lab.publish("unit", settings={"model.answer": "one"})
    number = lab.publish("unit", settings={"model.answer": "two"}, alias=False)
    gateway = lab.start({"unit": "unit"}, CACHED)
    gateway.ready("unit")
    before = gateway.ask("unit", "same", headers={"X-Scenarium-Key": "early"})
    assert (cached(before), before.json()["answer"]) == ("miss", "one")
    rollouts.start(lab.store, "unit", number, canary=0.5, shadow=False, limits=rollouts.Limits(min_requests=10**9))
    lab.until(lambda: any(gateway.ask("unit", str(n), headers={"X-Scenarium-Key": f"w{n}"}).json()["answer"] == "two" for n in range(20)))
    answers = {key: gateway.ask("unit", "same", headers={"X-Scenarium-Key": key}) for key in (f"k{n}" for n in range(30))}
    due = {key: number if in_canary("unit", number, 0.5, key) else 1 for key in answers}
    assert {key: int(each.headers["x-scenarium-version"]) for key, each in answers.items()} == due
    assert {each.json()["answer"] for key, each in answers.items() if due[key] == number} == {"two"}
    assert {each.json()["answer"] for key, each in answers.items() if due[key] == 1} == {"one"}
    assert [cached(each) for each in answers.values()].count("miss") == 1, "the candidate's first; production's was kept"
