"""Three gateways on one store: they agree without a word between them."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from scenarium.core import rollouts
from scenarium.core.rollouts import Limits, in_canary, standing

NEVER = Limits(min_requests=10**9)
KEYS = [f"session-{n}" for n in range(60)]


class Load:
    """One client of each gateway, that asks without a pause."""

    def __init__(self, gateways):
        self.answers = {gateway.url: [] for gateway in gateways}
        self.faults = []
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(gateway.url,)) for gateway in gateways]

    def _run(self, url):
        with httpx.Client(base_url=url, timeout=30) as client:
            while not self.stopped.is_set():
                try:
                    answer = client.post("/scenarios/unit/predict", json={"text": "x", "do": "sleep", "seconds": 0.002})
                except httpx.HTTPError as fault:
                    self.faults.append(fault)
                    return
                self.answers[url].append((answer.status_code, answer.headers.get("X-Scenarium-Version"), answer.json().get("answer")))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exc):
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def last(self):
        """What each gateway answered last."""
        return [answers[-1][1] for answers in self.answers.values() if answers]


@pytest.fixture
def three(lab):
    """Three gateways with two workers of version 1 each, and version 2 in the store."""
    lab.publish("unit", settings={"model.answer": "one"})
    lab.second = lab.publish("unit", settings={"model.answer": "two"}, alias=False)
    lab.gateways = []
    for number in range(3):
        files = [f"gateway.{name}={lab.folder / name}-{number}.sqlite" for name in ("keys", "jobs")]
        lab.gateways.append(lab.start({"unit": "unit"}, "scenarios.unit.serve.workers=2", *files))
    for gateway in lab.gateways:
        gateway.ready("unit")
        lab.until(lambda gateway=gateway: sum(worker["ready"] for worker in gateway.client.get("/scenarios/unit").json()["workers"]) == 2)
    return lab


def test_a_promote_is_seen_by_all_within_five_seconds_and_no_request_fails(three):
    with Load(three.gateways) as load:
        three.until(lambda: load.last() == ["1", "1", "1"])
        for number in (three.second, 1):
            began = time.monotonic()
            three.store.set_alias("unit", "production", number, "test")
            three.until(lambda number=number: load.last() == [str(number)] * 3, 5)
            assert time.monotonic() - began < 5
        time.sleep(0.3)
    assert not load.faults
    answers = [answer for each in load.answers.values() for answer in each]
    assert set(answers) == {(200, "1", "one"), (200, "2", "two")}


def test_the_same_keys_go_to_the_same_version_and_the_same_worker_on_each(three):
    rollouts.start(three.store, "unit", three.second, 0.3, False, NEVER)
    seats = []
    for gateway in three.gateways:

        def workers(gateway=gateway):
            found = gateway.client.get("/scenarios/unit").json()["workers"]
            ready = {worker["pid"]: (worker["version"], worker["seat"]) for worker in found if worker["ready"]}
            return len(ready) == 4 and ready

        seats.append(three.until(workers))

    def asked(gateway, key):
        return gateway.ask("unit", headers={"X-Scenarium-Key": key}).json()["pid"]

    with ThreadPoolExecutor(6) as pool:
        found = [
            [seats[number][pid] for pid in pool.map(lambda key, gateway=gateway: asked(gateway, key), KEYS)] for number, gateway in enumerate(three.gateways)
        ]
    assert found[0] == found[1] == found[2]
    assert [version for version, _ in found[0]] == [2 if in_canary("unit", three.second, 0.3, key) else 1 for key in KEYS]
    assert {seat for _, seat in found[0]} == {0, 1}


def test_a_rollback_by_one_gateway_is_followed_by_all_and_one_that_was_killed_is_not_missed(three):
    with Load(three.gateways[:2]) as load:
        rollouts.start(three.store, "unit", three.second, 0.5, False, NEVER)
        for gateway in three.gateways:
            gateway.wait_event("rollout_started")
        three.until(lambda: "2" in load.last())
        three.gateways[2].stop(signal.SIGKILL)
        rollout = standing(three.store, "unit").rollout
        rollouts.end(three.store, "unit", rollout.id, "rolled_back", "latency", rollouts.Words("slow", "慢"))
        for gateway in three.gateways[:2]:
            assert gateway.wait_event("rollout_ended", cause="latency")["reason"] == "slow"
        before = {url: len(answers) for url, answers in load.answers.items()}
        time.sleep(0.5)
    assert not load.faults
    assert {answer for answers in load.answers.values() for answer in answers} == {(200, "1", "one"), (200, "2", "two")}
    late = [answer for url, answers in load.answers.items() for answer in answers[before[url] + 2 :]]
    assert len(late) > 20
    assert set(late) == {(200, "1", "one")}
