"""Workers that stop answering, as whole processes."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.slow


def worker_of(gateway):
    return gateway.client.get("/scenarios/unit").json()["workers"][0]


def test_a_stopped_worker_is_replaced_and_its_requests_run_again(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"}, "scenarios.unit.serve.hang_s=1")
    gateway.ready("unit")
    before = worker_of(gateway)["pid"]
    os.kill(before, signal.SIGSTOP)
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        answers = [answer.result() for answer in [pool.submit(gateway.ask, "unit", f"t{n}") for n in range(4)]]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert {answer.json()["pid"] for answer in answers} == {worker_of(gateway)["pid"]} != {before}
    assert time.monotonic() - began < 8
    assert "said nothing for 1 s" in gateway.wait_event("worker_killed")["reason"]


def test_a_machine_that_stood_still_costs_no_worker(lab):
    """Gateway and worker are stopped, as by a paused virtual machine, while the gateway waits for the answer to a ping."""
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"}, "scenarios.unit.serve.hang_s=4")
    gateway.ready("unit")
    before = worker_of(gateway)["pid"]
    time.sleep(2.5)
    os.kill(before, signal.SIGSTOP)
    time.sleep(2.5)  # it looks every 2 s
    gateway.popen.send_signal(signal.SIGSTOP)
    time.sleep(4)
    gateway.popen.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    os.kill(before, signal.SIGCONT)
    assert gateway.ask("unit").json()["pid"] == before
    time.sleep(1)
    assert worker_of(gateway)["pid"] == before


def test_a_long_forward_is_no_hang(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"}, "scenarios.unit.serve.hang_s=0.5")
    gateway.ready("unit")
    before = worker_of(gateway)["pid"]
    assert gateway.ask("unit", "long", do="sleep", seconds=4).json()["pid"] == before


def test_readiness_rests_on_a_sample_that_was_answered_lately(lab, tmp_path):
    sick = tmp_path / "sick"
    lab.publish("unit", settings={"model.sick": str(sick)})
    gateway = lab.start({"unit": "unit"}, "scenarios.unit.serve.probe_s=0.1", "scenarios.unit.serve.required=true")
    gateway.ready("unit")
    pid = worker_of(gateway)["pid"]
    assert gateway.client.get("/readyz").status_code == 200
    sick.touch()
    gateway.wait_event("probe_failed", scenario="unit", status=500)
    assert gateway.client.get("/scenarios/unit/ready").status_code == 503
    assert gateway.client.get("/readyz").json()["waiting_for"] == {"unit": "ready"}
    assert not worker_of(gateway)["ready"]
    sick.unlink()
    lab.until(lambda: gateway.client.get("/readyz").status_code == 200)
    assert {"pid": pid, "version": 1, "ready": True}.items() <= worker_of(gateway).items()
    assert 'scenarium_requests_total{outcome="server_error",scenario="unit"} 0.0' in gateway.client.get("/metrics").text
