"""More scenarios than memory, as whole processes: what is loaded, evicted and loaded again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from scenarium.core.cli import root
from scenarium.core.config import GatewayConfig
from scenarium.core.errors import ScenariumError
from scenarium.core.settings import Settings
from scenarium.gateway import memory

pytestmark = pytest.mark.slow

MB = 1 << 20
WEIGHTS = 24 * MB
MODEL = 35
"""MiB of private memory of a worker that holds them: the weights, and what the process itself dirties."""


def metric(gateway, line):
    found = [each for each in gateway.client.get("/metrics").text.splitlines() if each.startswith(line + " ")]
    return float(found[0].rpartition(" ")[2]) if found else None


def total(gateway):
    """Bytes of the gateway's whole process tree without the files that processes share, and what its workers hold alone."""
    held = alone = 0
    for pid in gateway.processes():
        with suppress(OSError, KeyError):  # it ended meanwhile
            values = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            size = {name: int(value.split()[0]) * 1024 for name, value in values.items()}
            held += size["Pss_Anon"] + size["Pss_Shmem"]
            if parent != gateway.popen.pid and pid != gateway.popen.pid:
                held += size["Private_Clean"]
                alone += size["Private_Clean"] + size["Private_Dirty"]
    return held, alone


def states(gateway):
    return {each["name"]: each["state"] for each in gateway.client.get("/scenarios").json()["scenarios"]}


def resident(gateway):
    return [name for name, state in states(gateway).items() if state == "ready"]


@pytest.fixture(scope="module")
def base(shared_lab):
    """Bytes of a gateway and its zygote without any worker."""
    lab = shared_lab
    lab.publish("m0", "heavy", weights=WEIGHTS)
    gateway = lab.start({"heavy": "heavy"}, "scenarios.m0.plugin=heavy")
    gateway.ready("m0")
    time.sleep(1.0)
    all_, workers = total(gateway)
    assert 0.8 * MODEL * MB < workers < 1.2 * MODEL * MB
    assert metric(gateway, 'scenarium_memory_bytes{scenario="m0"}') == pytest.approx(workers, rel=0.1)
    assert metric(gateway, "scenarium_memory_used_bytes") == pytest.approx(all_, rel=0.1)
    gateway.stop()
    return all_ - workers


@pytest.fixture
def start(lab, base):
    """A gateway with ``count`` scenarios ``m0``, ``m1``, … and a budget for ``fit`` of them, with room for a first load of which more is foretold."""

    def begin(count, fit, *sets, **settings):
        names = [f"m{number}" for number in range(count)]
        for name in names:
            lab.publish(name, "heavy", weights=WEIGHTS, settings={f"model.{key}": value for key, value in settings.items()})
        plugins = [f"scenarios.{name}.plugin=heavy" for name in names]
        return lab.start({"heavy": "heavy"}, *plugins, f"gateway.memory_budget={base + int((fit + 0.8) * MODEL * MB)}", *sets)

    return begin


@contextmanager
def watched(gateway):
    """Measures until the end of the block: the most bytes of all, and of the workers alone."""
    most, over = [0, 0], threading.Event()

    def look():
        while not over.is_set():
            most[:] = map(max, most, total(gateway))
            over.wait(0.02)

    thread = threading.Thread(target=look)
    thread.start()
    yield most
    over.set()
    thread.join()


@pytest.mark.alone
def test_eight_models_in_a_budget_for_three(lab, start):
    gateway = start(8, 3, "gateway.residence_s=1")
    budget = metric(gateway, "scenarium_memory_budget_bytes")
    names = [f"m{number}" for number in range(8)]
    lab.until(lambda: len(resident(gateway)) >= 2)
    asked = random.Random(0).choices(names, [1 / rank for rank in range(1, 9)], k=100)
    with watched(gateway) as most, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda name: gateway.ask(name, f"to {name}"), asked))
    assert [answer.status_code for answer in answers] == [200] * 100
    assert [answer.json()["text"] for answer in answers] == [f"to {name}" for name in asked]
    assert set(asked) == set(names)
    assert max(most) <= 1.1 * budget
    assert sum(metric(gateway, f'scenarium_evictions_total{{scenario="{name}"}}') for name in names) >= 5
    assert metric(gateway, "scenarium_memory_used_bytes") <= 1.1 * budget


def test_who_asks_while_the_gateway_starts_is_loaded_for(lab, start):
    gateway = start(4, 1, "gateway.residence_s=0.1")  # it has just begun to listen; at the start itself nobody is evicted
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda number: gateway.ask(f"m{number}", f"{number}"), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4


def test_evictions_under_constant_load_lose_nothing(lab, start):
    gateway = start(3, 1, "gateway.residence_s=0.05")
    lab.until(lambda: len(resident(gateway)) == 1)
    rng = random.Random(1)
    asked = [f"m{rng.randrange(3)}" for _ in range(200)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda each: gateway.ask(each[1], f"{each[0]}", seconds=0.002), enumerate(asked)))
    assert [answer.status_code for answer in answers] == [200] * 200
    assert [answer.json()["text"] for answer in answers] == [str(number) for number in range(200)]
    evictions = sum(metric(gateway, f'scenarium_evictions_total{{scenario="m{number}"}}') for number in range(3))
    assert evictions >= 15
    assert sum(event["event"] == "evicted" for event in gateway.events) == evictions


def test_one_load_serves_all_who_wait(lab, start, tmp_path):
    trail = tmp_path / "trail"
    gateway = start(2, 1, "gateway.residence_s=0", load_seconds=0.5, trail=str(trail))
    lab.until(lambda: len(resident(gateway)) == 1)
    (idle,) = set(states(gateway)) - {"heavy", *resident(gateway)}
    assert states(gateway)[idle] == "idle"
    before = len(trail.read_text().split())
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda number: gateway.ask(idle, f"{number}"), range(20)))
    assert [answer.status_code for answer in answers] == [200] * 20
    assert len({answer.json()["pid"] for answer in answers}) == 1
    assert len(trail.read_text().split()) == before + 1
    assert metric(gateway, f'scenarium_loads_on_demand_total{{scenario="{idle}"}}') == 1


def test_what_was_just_loaded_is_not_evicted(lab, start):
    gateway = start(2, 1, "gateway.residence_s=1.5")
    lab.until(lambda: len(resident(gateway)) == 1)
    names = resident(gateway) * 2
    names[1] = "m1" if names[0] == "m0" else "m0"
    time.sleep(1.6)
    for _ in range(2):
        for name in reversed(names):
            assert gateway.ask(name).status_code == 200
    came = {}
    stays = []
    for event in gateway.events:
        if event["event"] == "worker_ready":
            came[event["scenario"]] = event["at"]
        elif event["event"] == "evicted":
            stays.append(seconds(event["at"]) - seconds(came[event["scenario"]]))
    assert len(stays) == 4
    assert min(stays) >= 1.49


def seconds(text):
    hours, minutes, rest = text[11:23].split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def test_what_works_is_not_evicted_and_others_are_told_to_come_again(lab, start):
    gateway = start(4, 3, "gateway.residence_s=0")
    lab.until(lambda: len(resident(gateway)) == 2)
    busy, other = ("m0", "m1", "m2"), "m3"
    assert [gateway.ask(name).status_code for name in busy] == [200] * 3
    lab.until(lambda: sorted(resident(gateway)) == sorted(busy))
    body = {"text": "long", "seconds": 7.0, "n": 1}
    with ThreadPoolExecutor(3) as pool:
        running = [
            pool.submit(gateway.client.post, f"/scenarios/{name}/{way}", json=body) for name, way in zip(busy, ("predict", "stream", "jobs"), strict=True)
        ]
        lab.until(lambda: all(metric(gateway, f'scenarium_requests_open{{scenario="{name}"}}') for name in busy))
        began = time.monotonic()
        refused = gateway.ask(other, headers={"Accept-Language": "zh"})
        assert 4 < time.monotonic() - began < 6.5
        assert (refused.status_code, refused.json()["code"]) == (503, "SCN-4042")
        assert int(refused.headers["retry-after"]) >= 1
        assert states(gateway)[other] == "idle"
        late = gateway.ask(other, headers={"X-Scenarium-Deadline-Ms": "200"})
        assert (late.status_code, late.json()["code"]) == (504, "SCN-4007")
        assert sorted(resident(gateway)) == sorted(busy)
        assert [answer.result().status_code for answer in running] == [200, 200, 202]
    where = running[2].result().headers["location"]
    lab.until(lambda: gateway.client.get(where).json()["state"] == "done")
    assert gateway.ask(other).status_code == 200
    assert states(gateway)[busy[0]] == "idle"


def test_a_job_loads_its_scenario(lab, start):
    gateway = start(2, 1, "gateway.residence_s=0")
    (busy,) = lab.until(lambda: len(found := resident(gateway)) == 1 and found)
    other = "m1" if busy == "m0" else "m0"
    where = gateway.client.post(f"/scenarios/{other}/jobs", json={"text": "later"}).headers["location"]
    lab.until(lambda: gateway.client.get(where).json()["state"] == "done")
    assert gateway.client.get(f"{where}/result").json()["text"] == "later"
    assert resident(gateway) == [other]


def test_what_is_kept_warm_stays_and_what_cannot_fit_says_so(lab, start):
    lab.publish("big", "heavy", weights=200 * MB)
    gateway = start(4, 2, "scenarios.m3.serve.keep_warm=true", "scenarios.big.plugin=heavy", "scenarios.m2.serve.required=true", "gateway.residence_s=0")
    gateway.ready("m2", "m3")
    pids = {name: gateway.client.get(f"/scenarios/{name}").json()["workers"][0]["pid"] for name in ("m2", "m3")}
    for name in ("m0", "m1", "big"):
        answer = gateway.ask(name, headers={"Accept-Language": "zh"})
        assert (answer.status_code, answer.json()["code"]) == (503, "SCN-4041")
        assert "最多只能腾出" in answer.json()["title"]
    assert gateway.client.get("/scenarios/big/ready").status_code == 503
    assert gateway.client.get("/readyz").status_code == 200
    assert pids == {name: gateway.ask(name).json()["pid"] for name in ("m2", "m3")}
    assert states(gateway) == {"heavy": "untrained", "big": "failed", "m0": "failed", "m1": "failed", "m2": "ready", "m3": "ready"}


def test_room_that_comes_later_is_used(lab, start):
    sets = "[scenarios.m0.serve]\nkeep_warm = true\n[scenarios.m1.serve]\nkeep_warm = {warm}\n"
    (lab.folder / "scenarios.toml").write_text(sets.format(warm="true"))
    gateway = start(3, 2, "gateway.residence_s=0")
    gateway.ready("m0", "m1")
    assert gateway.ask("m2").json()["code"] == "SCN-4041"
    (lab.folder / "scenarios.toml").write_text(sets.format(warm="false"))
    assert gateway.client.post("/admin/reload", json={}).json()["changed"] == ["m1"]
    lab.until(lambda: states(gateway)["m2"] == "idle")
    assert gateway.ask("m2").status_code == 200
    assert states(gateway)["m1"] == "idle"
    (lab.folder / "scenarios.toml").write_text(sets.format(warm="true"))
    gateway.client.post("/admin/reload", json={})
    lab.until(lambda: states(gateway)["m1"] == "ready")
    assert states(gateway)["m2"] == "idle"


def test_a_version_promoted_while_idle_is_loaded_on_demand(lab, start):
    gateway = start(2, 1, "gateway.residence_s=0")
    (busy,) = lab.until(lambda: len(found := resident(gateway)) == 1 and found)
    other = "m1" if busy == "m0" else "m0"
    lab.publish(other, "heavy", weights=WEIGHTS)
    lab.until(lambda: gateway.client.get(f"/scenarios/{other}").json()["version"] == 2)
    assert states(gateway)[other] == "idle"
    found = gateway.client.get(f"/scenarios/{other}/ready")
    assert (found.status_code, found.json()) == (200, {"status": "idle", "version": 2})
    assert metric(gateway, f'scenarium_state{{scenario="{other}",state="idle"}}') == 1
    assert resident(gateway) == [busy]
    shown = CliRunner().invoke(root, ["status", "--url", gateway.url], env={"SCENARIUM_LANG": "en"})
    assert any(line.split()[:3] == [other, "idle", "2"] for line in shown.output.splitlines()), shown.output
    answer = gateway.ask(other)
    assert (answer.status_code, answer.headers["x-scenarium-version"]) == (200, "2")


def test_a_new_version_without_room_beside_the_old_takes_its_place(lab, start):
    gateway = start(1, 1)
    gateway.ready("m0")
    with ThreadPoolExecutor(4) as pool, watched(gateway) as most:
        answers = [pool.submit(gateway.ask, "m0", f"t{number}", seconds=0.01) for number in range(600)]
        time.sleep(0.2)
        lab.publish("m0", "heavy", weights=WEIGHTS)
        found = [answer.result() for answer in answers]
    assert [answer.status_code for answer in found] == [200] * 600
    assert {answer.headers["x-scenarium-version"] for answer in found} == {"1", "2"}
    assert most[0] <= 1.1 * metric(gateway, "scenarium_memory_budget_bytes")


def test_no_kept_answer_outlives_workers_that_made_room_for_others_of_the_same_version(lab, start):
    gateway = start(1, 1, "scenarios.m0.serve.cache_size=100000")
    gateway.ready("m0")
    assert [gateway.ask("m0").headers["x-scenarium-cache"] for _ in range(2)] == ["miss", "hit"]
    (before,) = gateway.client.get("/scenarios/m0").json()["workers"]
    (lab.folder / "scenarios.toml").write_text("[scenarios.m0.serve]\nthreads = 3\n")
    gateway.popen.send_signal(signal.SIGHUP)
    lab.until(lambda: gateway.ask("m0", str(time.monotonic_ns())).json()["pid"] != before["pid"])
    assert gateway.ask("m0").headers["x-scenarium-cache"] == "miss"


def test_a_request_that_waits_for_its_load_is_answered_before_the_end(lab, start):
    gateway = start(2, 1, "gateway.residence_s=0", load_seconds=1.0)
    (busy,) = lab.until(lambda: len(found := resident(gateway)) == 1 and found)
    other = "m1" if busy == "m0" else "m0"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gateway.ask, other)
        lab.until(lambda: metric(gateway, f'scenarium_requests_open{{scenario="{other}"}}') == 1)
        processes = gateway.processes()
        assert gateway.stop() == 0
        assert waiting.result().status_code == 200
    lab.until(lambda: not lab.alive(processes))


def test_memory_comes_back(lab, start):
    """As ``benchmarks/gateway_memory.py`` measures it over 50 cycles."""
    gateway = start(2, 1, "gateway.residence_s=0")
    lab.until(lambda: len(resident(gateway)) == 1)
    sizes = []
    for _ in range(10):
        for name in ("m0", "m1"):
            assert gateway.ask(name).status_code == 200
        sizes.append(lab.until(lambda: resident(gateway) == ["m1"] and total(gateway)[0]))
    assert max(sizes[4:]) - sizes[3] < 5 * MB
    assert metric(gateway, 'scenarium_evictions_total{scenario="m0"}') >= 9


def test_what_a_process_and_its_children_hold():
    code = "import subprocess, sys; b = bytearray(b'x' * 2**25); {more}; print('ready', flush=True); sys.stdin.read()"
    inner = code.format(more="pass")
    outer = code.format(more=f"subprocess.Popen([sys.executable, '-c', {inner!r}], stdout=subprocess.PIPE).stdout.readline()")
    with subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        found = memory.measure(process.pid)
        assert len(found) == 2
        (child,) = set(found) - {process.pid}
        assert 32 * MB < found[child].uss < 60 * MB
        assert 64 * MB < found[process.pid].uss < 120 * MB
        assert 32 * MB < found[process.pid].own < found[process.pid].uss - 32 * MB
        process.stdin.close()


@pytest.mark.parametrize(("text", "wanted"), [("4GiB", 4 << 30), ("500MB", 500 * 10**6), ("1048576", 1 << 20), ("1.5 GiB", 3 << 29)])
def test_a_budget_has_units(text, wanted):
    config = Settings.read(environ={}, sets=[f"gateway.memory_budget={text}"]).validate(GatewayConfig, ("gateway",), "gateway")
    assert memory.budget_of(config.memory_budget) == wanted


@pytest.mark.parametrize("text", ["4 elephants", "0", "-1GiB"])
def test_a_wrong_budget_is_named(text):
    with pytest.raises(ScenariumError) as caught:
        Settings.read(environ={}, sets=[f"gateway.memory_budget={text}"]).validate(GatewayConfig, ("gateway",), "gateway")
    assert caught.value.code == "SCN-1004"
    assert "memory_budget" in caught.value.title()


def test_a_containers_limit_is_the_default(tmp_path, monkeypatch):
    newer, older = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    monkeypatch.setattr(memory, "LIMITS", (newer, older))
    assert memory.budget_of(None) is None
    older.write_text(f"{2**63 - 4096}\n")
    newer.write_text("max\n")
    assert memory.budget_of(None) is None
    newer.write_text(f"{10**9}\n")
    assert memory.budget_of(None) == 800_000_000
    newer.unlink()
    older.write_text(f"{min(10**9, os.sysconf('SC_PAGE_SIZE') * 1000)}\n")
    assert memory.budget_of(None) < 800_000_001
    assert memory.budget_of(123) == 123
