"""A candidate beside production, in real processes: who answers, who is never harmed, and when it is taken back."""

from __future__ import annotations

import json
import math
import signal
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from scenarium.core import rollouts
from scenarium.core.rollouts import Limits, in_canary, standing
from scenarium.core.types import Disagreement
from tests.gateway.steady_load import Load

pytestmark = pytest.mark.slow

LABEL = Disagreement("label", "/answer")
FEW = Limits(min_requests=20)
NEVER = Limits(min_requests=10**9)


@pytest.fixture
def pair(lab):
    """A lab with version 1 in production; ``lab.second`` commits the candidate."""
    lab.publish("unit", settings={"model.answer": "one"}, disagreement=LABEL)

    def second(**model):
        settings = {"model.answer": "two", **{f"model.{name}": value for name, value in model.items()}}
        return lab.publish("unit", settings=settings, alias=False, disagreement=LABEL)

    lab.second = second
    return lab


def trial(gateway):
    """The running rollout as the gateway shows it."""
    return next(each["rollout"] for each in gateway.client.get("/admin/status").json()["scenarios"] if each["name"] == "unit")


def tried(lab, gateway):
    """Wait until the candidate answers."""
    return lab.until(lambda: (found := trial(gateway)) and found["ready"] and found, 15)


def ended(lab):
    """Wait until the store says that the rollout is over."""
    return lab.until(lambda: not (found := standing(lab.store, "unit").rollout).running and found, 20)


def asked(gateway, **headers):
    """The version that answers a request with these headers."""
    answer = gateway.ask("unit", headers=headers)
    assert answer.status_code == 200
    assert answer.json()["answer"] == {"1": "one", "2": "two"}[answer.headers["X-Scenarium-Version"]]
    return int(answer.headers["X-Scenarium-Version"])


def within(count, share, total):
    """Whether a binomial count lies within four standard deviations."""
    return abs(count - share * total) <= 4 * math.sqrt(total * share * (1 - share))


def test_the_canary_is_sticky_its_share_is_kept_and_the_version_is_named_everywhere(pair):
    number = pair.second()
    gateway = pair.start({"unit": "unit"}, f"gateway.audit={pair.folder}/audit.jsonl")
    gateway.ready("unit")
    rollouts.start(pair.store, "unit", number, 0.2, False, NEVER)
    tried(pair, gateway)
    keys = [f"session-{n}" for n in range(300)]
    expected = {key: 2 if in_canary("unit", number, 0.2, key) else 1 for key in keys}
    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            found = dict(zip(keys, pool.map(lambda key: asked(gateway, **{"X-Scenarium-Key": key}), keys), strict=True))
            assert found == expected
        by_id = dict(zip(keys, pool.map(lambda key: asked(gateway, **{"X-Request-Id": key}), keys), strict=True))
        assert by_id == expected  # without a key the request id decides
        without = sum(pool.map(lambda _: asked(gateway) == 2, range(600)))
    assert within(without, 0.2, 600)
    elements = gateway.client.post("/scenarios/unit/predict/batch", json=[{"text": "x"}] * 400).json()
    assert within(sum(each["answer"] == "two" for each in elements), 0.2, 400)
    key = next(key for key in keys if expected[key] == 2)
    with gateway.client.stream("POST", "/scenarios/unit/stream", json={"text": "x"}, headers={"X-Scenarium-Key": key}) as parts:
        assert parts.headers["X-Scenarium-Version"] == "2"
        assert "event: end" in "".join(parts.iter_text())
    metrics = gateway.client.get("/metrics").text
    assert 'scenarium_rollout_version{scenario="unit"} 2.0' in metrics
    assert 'scenarium_rollout_share{scenario="unit"} 0.2' in metrics
    canary = trial(gateway)["canary"]["outcomes"]["ok"]
    assert f'scenarium_rollout_requests_total{{arm="canary",outcome="ok",scenario="unit"}} {float(canary)}' in metrics
    assert gateway.stop() == 0
    lines = [json.loads(line) for line in (pair.folder / "audit.jsonl").read_text().splitlines()]
    named = {line["request_id"]: line["version"] for line in lines}
    assert {key: named[key] for key in keys} == expected


def test_it_goes_on_after_a_restart_and_ends_when_told(pair):
    rollouts.start(pair.store, "unit", pair.second(), 0.5, False, NEVER)
    keys = [f"k{n}" for n in range(40)]
    seen = []
    for _ in range(2):
        gateway = pair.start({"unit": "unit"})
        tried(pair, gateway)
        seen.append([asked(gateway, **{"X-Scenarium-Key": key}) for key in keys])
        gateway.stop(signal.SIGKILL if len(seen) == 1 else signal.SIGTERM)
    assert seen[0] == seen[1]
    assert set(seen[0]) == {1, 2}
    rollouts.stop(pair.store, "unit")
    gateway = pair.start({"unit": "unit"})
    gateway.ready("unit")
    time.sleep(1.5)
    assert {asked(gateway, **{"X-Scenarium-Key": key}) for key in keys} == {1}
    assert trial(gateway) is None


def test_start_widen_stop_and_promote_lose_nothing_under_load(pair):
    number = pair.second(load_seconds=0.3)
    gateway = pair.start({"unit": "unit"})
    gateway.ready("unit")
    processes = gateway.processes()
    with Load(gateway, do="sleep", seconds=0.002) as load:
        rollouts.start(pair.store, "unit", number, 0.1, False, NEVER)
        tried(pair, gateway)
        rollouts.start(pair.store, "unit", number, 0.5, True, NEVER)
        pair.until(lambda: trial(gateway)["canary"]["requests"] > 50 and trial(gateway)["shadow"]["compared"] > 5)
        rollouts.stop(pair.store, "unit")
        gateway.wait_event("rollout_ended", cause="stopped")
        pair.until(lambda: len(gateway.processes()) == len(processes))
        rollouts.start(pair.store, "unit", number, 0.5, False, NEVER)
        tried(pair, gateway)
        began, before = time.monotonic(), len(load.answers)
        pair.store.set_alias("unit", "production", number, "test")
        pair.until(lambda: {answer.headers["X-Scenarium-Version"] for answer in load.answers[-30:]} == {"2"}, 5)
        assert time.monotonic() - began < 5
        gateway.wait_event("rollout_ended", cause="promoted")
        time.sleep(0.5)
    load.checked(1, 2)
    assert {answer.headers["X-Scenarium-Version"] for answer in load.answers[before:][-100:]} == {"2"}
    assert ended(pair).state == "promoted"
    pair.until(lambda: len(gateway.processes()) == len(processes))


@pytest.mark.alone
@pytest.mark.parametrize("does", ["hang", "sleep", "kill"])
def test_a_shadow_that_hangs_is_slow_or_dies_never_makes_a_client_wait(pair, does):
    number = pair.second(does=does, seconds=1.0)
    gateway = pair.start({"unit": "unit"})
    gateway.ready("unit")
    with Load(gateway, clients=2) as alone:
        time.sleep(1)
    rollouts.start(pair.store, "unit", number, 0.0, True, NEVER)
    tried(pair, gateway)
    with Load(gateway, clients=2) as load:
        time.sleep(3)
        figures = trial(gateway)
    load.checked(1)
    took = [statistics.median(answer.elapsed.total_seconds() for answer in each.answers) for each in (alone, load)]
    assert took[1] < 2 * took[0] + 0.005
    assert max(answer.elapsed.total_seconds() for answer in load.answers) < 1
    if does == "kill":
        found = ended(pair)
        assert (found.state, found.cause) == ("rolled_back", "crash")
        assert "died" in found.reason["en"]
        assert "退出" in found.reason["zh"]
    else:
        assert figures["shadow"]["dropped"] > 10  # what it could not take was dropped, and did not pile up
        rollouts.stop(pair.store, "unit")
        gateway.wait_event("rollout_ended", cause="stopped")
    assert asked(gateway) == 1


def test_copies_are_dropped_first_where_production_has_enough_to_do(lab):
    for alias, batch in ((True, 1), (False, 8)):
        lab.publish("unit", settings={"model.answer": "one", "model.max_batch": batch}, alias=alias, disagreement=LABEL)
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    rollouts.start(lab.store, "unit", 2, 0.0, True, NEVER)
    tried(lab, gateway)
    with Load(gateway, clients=8, do="sleep", seconds=0.02) as load:
        time.sleep(1.5)
    load.checked(1)
    busy = trial(gateway)["shadow"]
    assert busy["dropped"] > 20
    assert busy["dropped"] > 4 * busy["compared"]  # at the end, when the last are answered, some are taken again
    with Load(gateway, clients=1, do="sleep", seconds=0.02):
        lab.until(lambda: trial(gateway)["shadow"]["compared"] > busy["compared"] + 10)
    assert trial(gateway)["shadow"]["dropped"] == busy["dropped"]


@pytest.mark.parametrize("cause", ["error_rate", "latency", "disagreement"])
def test_a_worse_candidate_is_taken_back_by_itself_and_clients_see_no_error(pair, cause):
    sick = pair.folder / "sick"
    sick.touch()
    model = {"error_rate": {"sick": str(sick)}, "latency": {"does": "sleep", "seconds": 0.05}, "disagreement": {}}[cause]
    number = pair.second(**model)
    canary, shadow = (0.0, True) if cause == "disagreement" else (0.5, False)
    rollouts.start(pair.store, "unit", number, canary, shadow, FEW)
    gateway = pair.start({"unit": "unit"})
    gateway.ready("unit")
    with Load(gateway) as load:
        gateway.wait_event("rollout_ended")
        time.sleep(0.5)
    load.checked(*((1, 2) if cause == "latency" else (1,)))
    found = ended(pair)
    assert (found.state, found.cause, found.version) == ("rolled_back", cause, number)
    assert found.reason["en"] in {event.get("reason") for event in gateway.events if event["event"] == "rollout_ended"}
    assert found.figures["shadow" if shadow else "canary"]["requests"] >= 20
    assert f'scenarium_rollouts_ended_total{{cause="{cause}",scenario="unit"}} 1.0' in gateway.client.get("/metrics").text
    assert standing(pair.store, "unit").production == 1
    assert pair.store.aliases("unit")["history"][-1]["action"] == "rolled_back"
    time.sleep(1.2)
    assert trial(gateway) is None  # it does not begin again


def test_a_client_in_a_hurry_forces_no_rollback(pair):
    rollouts.start(pair.store, "unit", pair.second(does="sleep", seconds=0.02), 1.0, False, FEW)
    gateway = pair.start({"unit": "unit"})
    tried(pair, gateway)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: gateway.ask("unit", headers={"X-Scenarium-Deadline-Ms": "5"}), range(100)))
    assert {answer.status_code for answer in answers} == {504}
    time.sleep(1.5)
    canary = trial(gateway)["canary"]
    assert (canary["outcomes"]["deadline"], canary["error_rate"]) == (100, None)


def test_an_equal_candidate_stays(pair):
    number = pair.second(answer="one")
    rollouts.start(pair.store, "unit", number, 0.3, True, FEW)
    gateway = pair.start({"unit": "unit"})
    tried(pair, gateway)
    with Load(gateway) as load:
        pair.until(lambda: (found := trial(gateway)) is None or (found["canary"]["requests"] > 200 and found["shadow"]["compared"] > 20))
        time.sleep(1.5)
    assert not load.faults
    found = trial(gateway)
    assert found is not None
    assert found["disagreement"] == 0.0
    assert standing(pair.store, "unit").rollout.running


def test_a_candidate_that_cannot_be_loaded_is_taken_back_and_production_serves_on(pair):
    number = pair.second()
    rollouts.start(pair.store, "unit", number, 0.5, False, FEW)
    (pair.folder / "store" / "scenarios" / "unit" / str(number) / "weights.bin").write_bytes(b"changed")
    gateway = pair.start({"unit": "unit"})
    gateway.ready("unit")
    found = ended(pair)
    assert (found.state, found.cause) == ("rolled_back", "load")
    assert "weights.bin" in found.reason["en"] or "version 2" in found.reason["en"]
    assert {asked(gateway) for _ in range(20)} == {1}


def test_requests_of_a_dying_canary_are_answered_by_production(pair):
    rollouts.start(pair.store, "unit", pair.second(does="kill"), 0.5, False, NEVER)
    gateway = pair.start({"unit": "unit"})
    tried(pair, gateway)
    with Load(gateway) as load:
        gateway.wait_event("rollout_ended", cause="crash")
    load.checked(1)


def test_what_is_not_pure_is_not_run_twice(lab):
    """Its failure is the client's answer, as it is in production; what no worker had begun production answers."""
    trail = lab.folder / "trail"
    for answer in ("one", "two"):
        lab.publish("unit", settings={"model.answer": answer, "model.pure": False, "model.does": "raise" if answer == "two" else None}, alias=answer == "one")
    rollouts.start(lab.store, "unit", 2, 1.0, False, NEVER)
    gateway = lab.start({"unit": "unit"})
    tried(lab, gateway)
    answer = gateway.ask("unit", "once", trail=str(trail))
    assert (answer.status_code, answer.headers["X-Scenarium-Version"]) == (500, "2")
    assert trail.read_text() == "once\n"


def test_kept_answers_are_those_of_the_version_that_is_to_answer(pair):
    number = pair.second()
    rollouts.start(pair.store, "unit", number, 0.5, False, NEVER)
    gateway = pair.start({"unit": "unit"}, "scenarios.unit.serve.cache_size=1000000")
    tried(pair, gateway)
    keys = [f"k{n}" for n in range(20)]
    for _ in range(2):
        assert [asked(gateway, **{"X-Scenarium-Key": key}) for key in keys] == [2 if in_canary("unit", number, 0.5, key) else 1 for key in keys]
    assert gateway.ask("unit").headers["X-Scenarium-Cache"] == "hit"


def test_who_waits_for_a_slow_canarys_answer_that_may_be_kept_waits_no_longer_than_the_deadline(pair):
    rollouts.start(pair.store, "unit", pair.second(does="sleep", seconds=2.0), 1.0, False, NEVER)
    gateway = pair.start({"unit": "unit"}, "scenarios.unit.serve.cache_size=1000000", "scenarios.unit.serve.deadline_ms=1000")
    tried(pair, gateway)  # production has nothing to do at all
    began = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(gateway.ask, "unit")
        time.sleep(0.5)
        hurried = pool.submit(gateway.ask, "unit", headers={"X-Scenarium-Deadline-Ms": "200"})
        joined = pool.submit(gateway.ask, "unit")  # waits for the first one's computation, which ends half a second before its own deadline
        assert hurried.result().json()["code"] == "SCN-4007"
        assert 0.7 <= time.monotonic() - began < 0.95
        assert first.result().json()["code"] == "SCN-4007"
        assert 1.0 <= time.monotonic() - began < 1.4
        assert joined.result().json()["code"] == "SCN-4007"
        assert 1.5 <= time.monotonic() - began < 2.0


def test_changed_settings_and_a_removed_scenario_reach_the_candidate_too(pair):
    rollouts.start(pair.store, "unit", pair.second(), 0.5, False, NEVER)
    pair.publish("other", "unit")
    file = pair.folder / "scenarios.toml"
    file.write_text('[scenarios.other]\nplugin = "unit"\n')
    gateway = pair.start({"unit": "unit"})
    tried(pair, gateway)
    with Load(gateway, do="sleep", seconds=0.002) as load:
        file.write_text('[scenarios.other]\nplugin = "unit"\n[scenarios.unit.serve]\nthreads = 3\n')
        gateway.popen.send_signal(signal.SIGHUP)
        gateway.wait_event("reloaded")

        def new():
            found = gateway.client.get("/admin/status").json()["scenarios"]
            workers = next(each for each in found if each["name"] == "unit")["workers"]
            return sorted((worker["version"], worker["threads"]) for worker in workers) == [(1, 3), (2, 3)]

        pair.until(new)
    load.checked(1, 2)
    pids = {worker["pid"] for worker in gateway.client.get("/scenarios/unit").json()["workers"]}
    assert len(pair.alive(pids)) == 2
    file.write_text('[scenarios.other]\nplugin = "unit"\n[scenarios.unit]\nenabled = false\n')
    gateway.popen.send_signal(signal.SIGHUP)
    pair.until(lambda: gateway.client.get("/scenarios/unit").status_code == 404)
    pair.until(lambda: not pair.alive(pids))


def test_a_store_that_cannot_be_written_does_not_keep_a_worse_candidate(pair):
    rollouts.start(pair.store, "unit", pair.second(does="raise"), 0.5, False, FEW)
    gateway = pair.start({"unit": "unit"})
    tried(pair, gateway)
    lock = pair.folder / "store" / "scenarios" / "unit" / ".lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()  # nobody can lock it now, not even root
    with Load(gateway):
        gateway.wait_event("rollback_unwritten")
    assert trial(gateway) is None
    assert standing(pair.store, "unit").rollout.running
    assert {asked(gateway) for _ in range(10)} == {1}
    lock.rmdir()
    assert ended(pair).cause == "error_rate"
