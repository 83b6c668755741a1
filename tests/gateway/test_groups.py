"""Scenarios that share a worker process, as whole processes: each is served as if it were alone."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scenarium.core.config import ServeConfig
from scenarium.gateway import groups

pytestmark = pytest.mark.slow

NAMES = ("unit", "second", "third")
GROUP = [f"scenarios.{name}.serve.worker_group=together" for name in NAMES[:2]]


@pytest.fixture
def start(lab):
    """``unit`` and ``second`` share a process, ``third`` has its own."""

    def begin(*sets, **settings):
        for name in NAMES:
            lab.publish(name, "unit", settings={f"model.{key}": value for key, value in settings.items()}, weights=16 << 20)
        gateway = lab.start({"unit": "unit"}, *(f"scenarios.{name}.plugin=unit" for name in NAMES[1:]), *GROUP, *sets)
        gateway.ready(*NAMES)
        return gateway

    return begin


def workers(gateway, name):
    return gateway.client.get(f"/scenarios/{name}").json()["workers"]


def pid_of(gateway, name):
    return workers(gateway, name)[0]["pid"]


def lines(gateway, name):
    return [line["line"] for line in gateway.client.get(f"/admin/logs/{name}").json()["lines"]]


def threads(pid):
    return int(next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Threads")).split()[1])


@pytest.mark.alone
def test_members_share_a_process_and_answer_at_the_same_time(lab, start):
    gateway = start()
    assert pid_of(gateway, "unit") == pid_of(gateway, "second") != pid_of(gateway, "third")
    assert len(gateway.processes()) == 4  # gateway, zygote, the group's, the third's
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(gateway.ask, "unit", "slow", do="sleep", seconds=1.5)
        lab.until(lambda: 'scenarium_requests_open{scenario="unit"} 1.0' in gateway.client.get("/metrics").text)
        began = time.monotonic()
        quick = gateway.ask("second", "quick")
        assert (quick.status_code, quick.json()["text"]) == (200, "quick")
        assert time.monotonic() - began < 1
        assert not slow.done()
        assert slow.result().json()["text"] == "slow"
    texts = [f"t{number}" for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: gateway.ask(NAMES[int(text[1:]) % 2], text), texts))
    assert [answer.json()["text"] for answer in found] == texts


def test_what_a_member_prints_is_its_own(lab, start):
    gateway = start()
    gateway.ask("unit", "mine", do="print")
    gateway.ask("second", "yours", do="raise")
    lab.until(lambda: "to stdout: mine" in lines(gateway, "unit"))
    lab.until(lambda: any("cannot take yours" in line for line in lines(gateway, "second")))
    assert not any("mine" in line for line in lines(gateway, "second"))
    assert not any("yours" in line for line in lines(gateway, "unit"))


def test_the_death_of_one_is_the_death_of_all_and_nothing_is_lost(lab, start):
    gateway = start()
    before, apart = pid_of(gateway, "unit"), pid_of(gateway, "third")
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(gateway.ask, NAMES[number % 3], f"t{number}", do="sleep", seconds=0.005) for number in range(300)]
        time.sleep(0.2)
        os.kill(before, signal.SIGKILL)
        found = [answer.result() for answer in answers]
    assert [answer.status_code for answer in found] == [200] * 300
    assert [answer.json()["text"] for answer in found] == [f"t{number}" for number in range(300)]
    assert pid_of(gateway, "unit") == pid_of(gateway, "second") != before
    assert pid_of(gateway, "third") == apart
    assert len(gateway.processes()) == 4


def test_a_process_that_dies_while_a_member_comes_is_replaced_at_once(lab, start):
    gateway = start()
    before = pid_of(gateway, "second")
    os.kill(before, signal.SIGSTOP)
    (lab.folder / "scenarios.toml").write_text("[scenarios.unit.serve]\nthreads = 1\n")  # new workers for unit, asked of the stopped process
    gateway.client.post("/admin/reload", json={})
    time.sleep(0.3)
    os.kill(before, signal.SIGKILL)
    lab.until(lambda: len(pids := [w["pid"] for name in NAMES[:2] for w in workers(gateway, name) if w["ready"]]) == 2 and pids[0] == pids[1] != before, 30)
    assert not [event for event in gateway.events if event["event"] == "worker_failed"]


def test_a_member_that_hangs_costs_its_own_requests_alone(lab, start):
    gateway = start()
    before = pid_of(gateway, "unit")
    late = gateway.ask("unit", "late", do="hang", headers={"X-Scenarium-Deadline-Ms": "300"})
    assert late.status_code == 504
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(gateway.ask, NAMES[number % 2], f"t{number}", do="sleep", seconds=0.05) for number in range(100)]
        assert [answer.result().status_code for answer in answers] == [200] * 100
    gateway.wait_event("worker_killed", scenario="unit")
    lab.until(lambda: len(pids := [w["pid"] for name in NAMES[:2] for w in workers(gateway, name)]) == 2 and before not in pids)


def test_a_member_leaves_and_its_memory_comes_back(lab, start):
    gateway = start()
    (lab.folder / "scenarios.toml").write_text("")
    before = pid_of(gateway, "second")
    most = threads(before)
    sizes = []
    for version in range(2, 8):
        lab.publish("unit", "unit", weights=16 << 20)
        lab.until(lambda version=version: gateway.ask("unit").headers["x-scenarium-version"] == str(version))
        lab.until(lambda: len(workers(gateway, "unit")) == 1)
        lab.until(lambda: threads(before) <= most)
        values = dict(line.split(":") for line in Path(f"/proc/{before}/smaps_rollup").read_text().splitlines()[1:])
        sizes.append(int(values["Private_Dirty"].split()[0]) / 1024)
    assert {pid_of(gateway, name) for name in NAMES[:2]} == {before}
    assert max(sizes[2:]) - sizes[1] < 5, sizes


def test_the_last_member_takes_the_process_along(lab, start):
    table = "[scenarios.unit.serve]\nworkers = {count}\n"
    (lab.folder / "scenarios.toml").write_text(table.format(count=2))
    gateway = start()
    lab.until(lambda: len([worker for worker in workers(gateway, "unit") if worker["ready"]]) == 2)
    first, other = pid_of(gateway, "second"), {worker["pid"] for worker in workers(gateway, "unit")} - {pid_of(gateway, "second")}
    assert len(other) == 1
    (lab.folder / "scenarios.toml").write_text(table.format(count=1))
    gateway.client.post("/admin/reload", json={})
    lab.until(lambda: [worker["pid"] for worker in workers(gateway, "unit")] == [first])
    lab.until(lambda: not lab.alive(other))
    assert gateway.stop() == 0


def test_a_member_that_cannot_load_harms_no_other(lab, start):
    gateway = start()
    pid = pid_of(gateway, "second")
    number = lab.publish("unit", answer={"text": "not this", "answer": "one", "batch": 1, "pid": 1, "noise": 0.5})
    fault = gateway.wait_event("worker_failed", scenario="unit", version=number)
    assert "SCN-5005" in fault["title"] or "sample" in fault["title"]
    assert gateway.ask("unit").headers["x-scenarium-version"] == "1"
    assert gateway.ask("second").json()["pid"] == pid


@pytest.mark.alone
def test_a_stream_and_parallel_items_in_a_group(lab, start):
    gateway = start(concurrency=4)
    with gateway.client.stream("POST", "/scenarios/unit/stream", json={"text": "x", "n": 3, "seconds": 0.05}) as answer:
        parts = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith('data: {"part')]
    assert [part["part"] for part in parts] == [0, 1, 2]
    with ThreadPoolExecutor(4) as pool:
        began = time.monotonic()
        assert {answer.status_code for answer in pool.map(lambda _: gateway.ask("second", do="sleep", seconds=0.5), range(4))} == {200}
        assert time.monotonic() - began < 1.5
    gateway.ask("second", "printed", do="print")
    lab.until(lambda: "to stdout: printed" in lines(gateway, "second"))


def test_nothing_is_left_of_a_killed_gateway(lab, start):
    gateway = start()
    processes = gateway.processes()
    gateway.popen.kill()
    lab.until(lambda: not lab.alive(processes), 5)


def test_spawned_workers_share_too(lab):
    for name in NAMES[:2]:
        lab.publish(name, "unit")
    gateway = lab.start({"unit": "unit"}, "scenarios.second.plugin=unit", *GROUP, spawn=True)
    gateway.ready(*NAMES[:2])
    assert pid_of(gateway, "unit") == pid_of(gateway, "second")
    assert gateway.ask("second", "hello").json()["text"] == "hello"
    os.kill(pid_of(gateway, "unit"), signal.SIGKILL)
    assert gateway.ask("unit", "again").status_code == 200


@pytest.mark.parametrize(
    ("settings", "kind", "gpus", "wanted"),
    [
        ({}, "torch", 0, None),
        ({}, "torch", 2, "cuda:0"),
        ({}, "bare", 2, None),
        ({"device": "cpu"}, "torch", 2, None),
        ({"device": "cuda"}, "torch", 2, "cuda:0"),
        ({"device": "cuda:1"}, "torch", 2, "cuda:1"),
        ({"device": "cuda:1", "worker_group": ""}, "torch", 2, None),
        ({"device": "cuda:1", "worker_group": "mine"}, "torch", 2, "mine"),
        ({"worker_group": "mine"}, "bare", 0, "mine"),
    ],
)
def test_one_group_a_gpu_unless_told_otherwise(tmp_path, monkeypatch, settings, kind, gpus, wanted):
    monkeypatch.setattr(groups, "GPUS", tmp_path)
    for number in range(gpus):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
    assert groups.group_of(ServeConfig(**settings), kind) == wanted
