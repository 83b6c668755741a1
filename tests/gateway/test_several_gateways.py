"""Three gateways on one store: they agree without a word between them."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from scenarium.core import rollouts
from scenarium.core.rollouts import Limits, in_canary, standing
from tests.gateway.steady_load import Load

pytestmark = pytest.mark.slow

NEVER = Limits(min_requests=10**9)
KEYS = [f"session-{n}" for n in range(60)]


@contextmanager
def loaded(gateways):
    """One client of each gateway, that asks without a pause."""
    with ExitStack() as stack:
        yield [stack.enter_context(Load(gateway, clients=1, do="sleep", seconds=0.002)) for gateway in gateways]


def last(loads):
    """The version that each gateway answered last."""
    return [load.last() for load in loads]


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
    with loaded(three.gateways) as loads:
        three.until(lambda: last(loads) == ["1", "1", "1"])
        for number in (three.second, 1):
            began = time.monotonic()
            three.store.set_alias("unit", "production", number, "test")
            three.until(lambda number=number: last(loads) == [str(number)] * 3, 5)
            assert time.monotonic() - began < 5
        time.sleep(0.3)
    for load in loads:
        load.checked(1, 2)


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
    with loaded(three.gateways[:2]) as loads:
        rollouts.start(three.store, "unit", three.second, 0.5, False, NEVER)
        for gateway in three.gateways:
            gateway.wait_event("rollout_started")
        three.until(lambda: "2" in last(loads))
        three.gateways[2].stop(signal.SIGKILL)
        rollout = standing(three.store, "unit").rollout
        rollouts.end(three.store, "unit", rollout.id, "rolled_back", "latency", rollouts.Words("slow", "慢"))
        for gateway in three.gateways[:2]:
            assert gateway.wait_event("rollout_ended", cause="latency")["reason"] == "slow"
        before = [len(load.answers) for load in loads]
        time.sleep(0.5)
    for load in loads:
        load.checked(1, 2)
    late = [answer.json()["answer"] for load, count in zip(loads, before, strict=True) for answer in load.answers[count + 2 :]]
    assert len(late) > 20
    assert set(late) == {"one"}
