"""Versions that change, gateways that end: nothing accepted is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.gateway.steady_load import Load


def test_a_promoted_version_takes_over_under_load_and_a_rollback_brings_the_old_one_back(lab):
    first = lab.publish("unit", settings={"model.answer": "one"})
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    with Load(gateway, clients=6, do="sleep", seconds=0.001) as load:
        time.sleep(0.5)
        began = time.monotonic()
        second = lab.publish("unit", settings={"model.answer": "two", "model.load_seconds": 0.5})
        lab.until(lambda: load.answers[-1].json()["answer"] == "two", 5)
        assert time.monotonic() - began < 5
        lab.store.set_alias("unit", "production", first, "back")
        lab.until(lambda: load.answers[-1].json()["answer"] == "one", 5)
        time.sleep(0.3)
    load.checked(first, second)
    workers = lab.until(lambda: (d := gateway.client.get("/scenarios/unit").json()["workers"]) and len(d) == 1 and d)
    lab.until(lambda: gateway.processes() >= {workers[0]["pid"]} and len(gateway.processes()) == 3)


def test_a_version_that_cannot_be_loaded_is_refused_and_the_old_one_serves_on(lab):
    first = lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    number = lab.publish("unit", alias=False)
    weights = lab.folder / "store" / "scenarios" / "unit" / str(number) / "weights.bin"
    weights.chmod(0o644)
    weights.write_bytes(b"changed")
    lab.store.set_alias("unit", "production", number, "test")
    refused = gateway.wait_event("version_refused", scenario="unit")
    assert refused["code"] == "SCN-5002"
    answer = lab.publish("unit", answer={"text": "你好", "answer": "other", "batch": 1, "pid": 1, "noise": 0.5})
    failed = gateway.wait_event("worker_failed", scenario="unit", version=answer)
    assert "SCN-4010" in failed["code"]
    assert gateway.ask("unit").headers["X-Scenarium-Version"] == str(first)
    found = gateway.client.get("/scenarios/unit").json()
    assert (found["state"], found["version"]) == ("ready", first)
    assert "pip install" in found["last_fault"]["error"]["hint"] or "train" in found["last_fault"]["error"]["hint"]


def test_the_first_version_of_an_untrained_scenario_is_noticed(lab):
    gateway = lab.start({"unit": "unit"}, "scenarios.unit.serve.required=true")
    lab.until(lambda: gateway.client.get("/scenarios/unit").json()["state"] == "untrained")
    assert gateway.client.get("/readyz").json() == {"status": "waiting", "waiting_for": {"unit": "untrained"}}
    lab.publish("unit")
    gateway.ready("unit", timeout=8)
    assert gateway.client.get("/readyz").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_loses_no_accepted_request_and_leaves_no_process(lab, number):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"}, "scenarios.unit.serve.workers=2")
    gateway.ready("unit")
    processes = gateway.processes()
    host, port = gateway.url.removeprefix("http://").split(":")
    body = json.dumps({"text": "x", "do": "sleep", "seconds": 0.1}).encode()
    accepted = []
    for _ in range(40):
        accepted.append(socket.create_connection((host, int(port))))
        accepted[-1].sendall(b"POST /scenarios/unit/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    lab.until(lambda: 'scenarium_requests_open{scenario="unit"} 40.0' in gateway.client.get("/metrics").text)
    gateway.popen.send_signal(number)
    gateway.wait_event("draining")
    found = []
    for connection in accepted:
        connection.settimeout(15)
        found.append(connection.recv(65536).split(b"\r\n")[0])
        connection.close()
    assert found == [b"HTTP/1.1 200 OK"] * 40
    assert gateway.stop() == 0
    assert not lab.alive(processes)


def test_a_second_gateway_on_the_store_sees_the_promotion_too(lab):
    lab.publish("unit", settings={"model.answer": "one"})
    gateways = [lab.start({"unit": "unit"}) for _ in range(2)]
    for gateway in gateways:
        gateway.ready("unit")
    lab.publish("unit", settings={"model.answer": "two"})
    for gateway in gateways:
        lab.until(lambda gateway=gateway: gateway.ask("unit").json()["answer"] == "two", 6)


def test_twenty_four_workers_are_there_at_once_and_each_answers_as_itself(lab):
    names = [f"s{n}" for n in range(24)]
    for name in names:
        lab.publish(name, "unit", settings={"model.answer": name})
    gateway = lab.start({"unit": "unit"}, *(f"scenarios.{name}.plugin=unit" for name in names))
    began = time.monotonic()
    gateway.ready(*names)
    assert time.monotonic() - began < 20
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: (names[n % 24], gateway.ask(names[n % 24], "x").json()), range(240)))
    assert all(name == answer["answer"] for name, answer in answers)
    assert len({answer["pid"] for _, answer in answers}) == 24
    os.kill(gateway.client.get("/scenarios/s3").json()["workers"][0]["pid"], signal.SIGKILL)
    assert gateway.ask("s3").json()["answer"] == "s3"
