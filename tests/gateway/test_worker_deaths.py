"""Real processes that are killed, hang, or hold poison: no neighbour is harmed and nothing stays."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.gateway.steady_load import Load

pytestmark = pytest.mark.slow


def pid_of(gateway, name="unit"):
    return gateway.client.get(f"/scenarios/{name}").json()["workers"][0]["pid"]


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def zygote_of(gateway):
    workers = {w["pid"] for s in gateway.client.get("/scenarios").json()["scenarios"] for w in gateway.client.get(s["url"]).json()["workers"]}
    return next(pid for pid in children_of(gateway.popen.pid) if pid not in workers)


def test_poison_in_a_batch_fails_alone(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    with ThreadPoolExecutor(9) as pool:
        blocker = pool.submit(gateway.ask, "unit", "blocker", do="sleep", seconds=0.5)
        time.sleep(0.1)
        answers = [pool.submit(gateway.ask, "unit", f"t{n}", do="kill" if n == 3 else "answer") for n in range(8)]
        found = [answer.result() for answer in [blocker, *answers]]
    assert [a.status_code for a in found] == [200, 200, 200, 200, 500, 200, 200, 200, 200]
    assert found[4].json()["code"] == "SCN-4009"
    assert gateway.ask("unit", "after").status_code == 200


def test_an_item_that_raises_fails_alone_and_the_worker_lives(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    before = pid_of(gateway)
    with ThreadPoolExecutor(9) as pool:
        pool.submit(gateway.ask, "unit", "blocker", do="sleep", seconds=0.4)
        time.sleep(0.1)
        answers = [pool.submit(gateway.ask, "unit", f"t{n}", do="raise" if n == 3 else "answer") for n in range(8)]
        found = [answer.result() for answer in answers]
    assert [a.status_code for a in found] == [200, 200, 200, 500, 200, 200, 200, 200]
    assert found[3].json()["code"] == "SCN-4003"
    assert "cannot take t3" in found[3].json()["title"]
    assert pid_of(gateway) == before
    lab.until(lambda: any("ValueError: cannot take t3" in e.get("line", "") and e["scenario"] == "unit" for e in gateway.events))


def test_a_wrong_number_of_answers_fails_the_batch_and_names_the_plugin(lab):
    lab.publish("unit", settings={"model.wrong_count": True})
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    with ThreadPoolExecutor(5) as pool:
        pool.submit(gateway.ask, "unit", "blocker", do="sleep", seconds=0.4)
        time.sleep(0.1)
        answers = [pool.submit(gateway.ask, "unit", f"t{n}") for n in range(4)]
        found = [answer.result() for answer in answers]
    assert [a.status_code for a in found] == [500] * 4
    assert "plugin 'unit' returned 3 outputs for 4 items" in found[0].json()["title"]
    assert gateway.ask("unit", "alone").status_code == 200


def test_a_stream_of_which_nothing_came_is_run_again(lab):
    """Two streams in one batch: the worker dies while it makes the first."""
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    begun = threading.Event()

    def stream(text):
        with gateway.client.stream("POST", "/scenarios/unit/stream", json={"text": text, "seconds": 0.5}) as answer:
            return "".join(piece for piece in answer.iter_text() if begun.set() is None)

    with ThreadPoolExecutor(3) as pool:
        pool.submit(gateway.ask, "unit", "blocker", do="sleep", seconds=1.0)
        lab.until(lambda: 'scenarium_requests_open{scenario="unit"} 1.0' in gateway.client.get("/metrics").text)
        answers = [pool.submit(stream, text) for text in "ab"]
        assert begun.wait(10)
        os.kill(pid_of(gateway), signal.SIGKILL)
        cut, whole = sorted((answer.result() for answer in answers), key=lambda answer: "event: end" in answer)
    assert cut.count('"part"') == 1
    assert "SCN-4008" in cut
    assert whole.count('"part"') == 3


def test_what_is_not_pure_is_never_run_again(lab, tmp_path):
    trail = tmp_path / "trail"
    lab.publish("unit", settings={"model.pure": False})
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(gateway.ask, "unit", "running", do="sleep", seconds=5, trail=str(trail))
        lab.until(trail.exists)
        waiting = pool.submit(gateway.ask, "unit", "waiting", trail=str(trail))
        time.sleep(0.1)
        os.kill(pid_of(gateway), signal.SIGKILL)
        assert running.result().status_code == 503
        assert running.result().json()["code"] == "SCN-4008"
        assert waiting.result().status_code == 200
    assert trail.read_text().split() == ["running", "waiting"]


@pytest.mark.alone
def test_a_hung_worker_costs_its_own_requests_only_and_is_replaced(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    before = pid_of(gateway)
    began = time.monotonic()
    late = gateway.ask("unit", "late", do="hang", headers={"X-Scenarium-Deadline-Ms": "300"})
    assert late.status_code == 504
    assert late.json()["code"] == "SCN-4007"
    assert 0.25 < time.monotonic() - began < 1.0
    assert gateway.ask("unit", "next").status_code == 200
    assert pid_of(gateway) != before
    gateway.wait_event("worker_killed", scenario="unit")


def eight_in_a_batch(lab, gateway, third):
    """Answers of eight requests that run together after another one; ``third`` is what the one among them does that has 800 ms."""
    with ThreadPoolExecutor(9) as pool:
        pool.submit(gateway.ask, "unit", "blocker", do="sleep", seconds=0.5)
        lab.until(lambda: 'scenarium_requests_open{scenario="unit"} 1.0' in gateway.client.get("/metrics").text)
        began = time.monotonic()
        limit = {"headers": {"X-Scenarium-Deadline-Ms": "800"}}
        answers = [pool.submit(gateway.ask, "unit", f"t{n}", **(third | limit if n == 3 else {"do": "sleep", "seconds": 0.1})) for n in range(8)]
        late = answers[3].result()
        assert 0.7 < time.monotonic() - began < 1.2
        assert (late.status_code, late.json()["code"]) == (504, "SCN-4007")
        found = [answer.result() for n, answer in enumerate(answers) if n != 3]
    assert [(answer.status_code, answer.json()["text"]) for answer in found] == [(200, f"t{n}") for n in range(8) if n != 3]
    return [answer.json() for answer in found]


@pytest.mark.alone
def test_one_deadline_in_a_batch_of_eight_harms_no_neighbour(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    before = pid_of(gateway)
    answers = eight_in_a_batch(lab, gateway, {"do": "sleep", "seconds": 0.1})
    assert {(answer["batch"], answer["pid"]) for answer in answers} == {(8, before)}


@pytest.mark.alone
def test_an_endless_item_in_a_batch_of_eight_harms_no_neighbour(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    before = pid_of(gateway)
    began = time.monotonic()
    answers = eight_in_a_batch(lab, gateway, {"do": "hang"})
    assert time.monotonic() - began < 10, "long before their own deadlines"
    assert {(answer["batch"], answer["pid"]) for answer in answers} == {(1, pid_of(gateway))}
    assert pid_of(gateway) != before
    assert gateway.wait_event("worker_killed", scenario="unit")["reason"] == "it hangs"


@pytest.mark.alone
def test_twenty_abandoned_requests_are_never_run(lab, tmp_path):
    trail = tmp_path / "trail"
    lab.publish("unit", settings={"model.max_batch": 1})
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    host, port = gateway.url.removeprefix("http://").split(":")
    with ThreadPoolExecutor(1) as pool:
        blocker = pool.submit(gateway.ask, "unit", "blocker", do="sleep", seconds=2.0, trail=str(trail))
        lab.until(trail.exists)
        sockets = []
        for n in range(20):
            body = json.dumps({"text": f"abandoned{n}", "trail": str(trail)}).encode()
            sockets.append(socket.create_connection((host, int(port))))
            sockets[-1].sendall(b"POST /scenarios/unit/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        lab.until(lambda: 'scenarium_queue_depth{scenario="unit"} 20.0' in gateway.client.get("/metrics").text)
        for abandoned in sockets:
            abandoned.close()
        assert blocker.result().status_code == 200
    began = time.monotonic()
    assert gateway.ask("unit", "live", trail=str(trail)).status_code == 200
    assert time.monotonic() - began < 0.5
    assert trail.read_text().split() == ["blocker", "live"]
    assert 'scenarium_requests_total{outcome="cancelled",scenario="unit"} 20.0' in gateway.client.get("/metrics").text


def test_a_dead_zygote_harms_no_worker_and_is_made_anew(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    worker, zygote = pid_of(gateway), zygote_of(gateway)
    os.kill(zygote, signal.SIGKILL)
    gateway.wait_event("zygote_died")
    assert gateway.ask("unit", "still here").json()["pid"] == worker
    os.kill(worker, signal.SIGKILL)
    answer = gateway.ask("unit", "again")
    assert answer.status_code == 200
    assert answer.json()["pid"] != worker
    lab.until(lambda: zygote_of(gateway) != zygote)  # once nothing is left of the dead one
    lab.until(lambda: not Path(f"/proc/{worker}").exists())  # reaped by the gateway, whose child it became


def test_nothing_is_left_of_a_gateway_that_was_killed(lab):
    lab.publish("unit")
    lab.publish("other", "unit")
    gateway = lab.start({"unit": "unit"}, "scenarios.other.plugin=unit", "scenarios.unit.serve.workers=2")
    gateway.ready("unit", "other")
    with ThreadPoolExecutor(2) as pool:
        pool.submit(lambda: gateway.ask("unit", "busy", do="hang"))
        time.sleep(0.3)
        processes = gateway.processes()
        assert len(processes) == 5
        gateway.popen.kill()
        lab.until(lambda: not lab.alive(processes), 5)


@pytest.mark.parametrize("event", ["worker killed", "SIGTERM", "gateway killed", "zygote and gateway killed", "spawned worker killed"])
def test_what_a_worker_has_started_ends_with_it(lab, event):
    lab.publish("parent")
    gateway = lab.start({"parent": "parent"}, spawn=event.startswith("spawned"))
    gateway.ready("parent")
    child = gateway.ask("parent").json()["child"]
    assert child in gateway.processes()
    if event.endswith("worker killed"):
        os.kill(pid_of(gateway, "parent"), signal.SIGKILL)
    if event.startswith("zygote"):
        os.kill(zygote_of(gateway), signal.SIGKILL)
        gateway.wait_event("zygote_died")
    if event.endswith("gateway killed"):
        gateway.popen.kill()
    if event == "SIGTERM":
        assert gateway.stop() == 0
    lab.until(lambda: not lab.alive({child}), 5)


def test_random_numbers_differ_between_workers(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"}, "scenarios.unit.serve.workers=2")
    gateway.ready("unit")
    lab.until(lambda: sum(w["ready"] for w in gateway.client.get("/scenarios/unit").json()["workers"]) == 2)
    with ThreadPoolExecutor(2) as pool:
        a, b = (f.result().json() for f in [pool.submit(gateway.ask, "unit", "x", do="sleep", seconds=0.3) for _ in range(2)])
    assert a["pid"] != b["pid"]
    assert a["noise"] != b["noise"]


def kill_again(lab, gateway, before):
    """Kill the worker, and the one that takes its place while that still loads."""
    os.kill(before, signal.SIGKILL)
    lab.until(lambda: any(worker["pid"] != before for worker in gateway.client.get("/scenarios/unit").json()["workers"]))
    os.kill(pid_of(gateway), signal.SIGKILL)


def test_a_start_that_fails_once_costs_nothing_that_waits(lab):
    lab.publish("unit", settings={"model.load_seconds": 1.0})
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    with Load(gateway, do="sleep", seconds=0.01) as load:
        lab.until(lambda: len(load.answers) > 20)
        kill_again(lab, gateway, pid_of(gateway))
        gateway.wait_event("worker_failed")
        seen = len(load.answers)
        assert gateway.client.get("/scenarios/unit").json()["state"] == "starting"
        lab.until(lambda: len(load.answers) > seen + 20)
    load.checked(1)


def test_a_version_that_served_and_cannot_start_any_more_fails_at_the_third_time(lab):
    number = lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    (lab.folder / "store" / "scenarios" / "unit" / str(number) / "weights.bin").unlink()
    os.kill(pid_of(gateway), signal.SIGKILL)
    gateway.wait_event("worker_failed")
    answer = gateway.ask("unit", "waits until it is hopeless")
    assert (answer.status_code, answer.json()["code"]) == (503, "SCN-4010")
    assert sum(event["event"] == "worker_failed" for event in gateway.events) == 3
    assert gateway.client.get("/scenarios/unit").json()["state"] == "failed"
    assert gateway.ask("unit").json()["code"] == "SCN-4010"


def test_a_worker_that_dies_at_each_start_is_backed_off_and_shown(lab):
    lab.publish("exits", "unit")
    gateway = lab.start({"exits": "exits", "unit": "unit"})
    details = lab.until(lambda: (d := gateway.client.get("/scenarios/exits").json())["state"] == "failed" and d)
    answer = gateway.ask("exits", "x", headers={"Accept-Language": "zh"})
    assert answer.status_code == 503
    assert answer.json()["code"] == "SCN-4010"
    assert "sys.exit" in details["last_fault"]["error"]["title"]
    assert "Retry-After" in answer.headers
    starts = sum(e["event"] == "worker_failed" for e in gateway.events)
    time.sleep(1.0)
    assert sum(e["event"] == "worker_failed" for e in gateway.events) <= starts + 1
