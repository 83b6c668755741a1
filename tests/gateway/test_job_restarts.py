"""Jobs on real gateways: each has one result though the gateway is killed, drained or reloaded."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.gateway.job_calls import ended, job_of, lines, submit

pytestmark = pytest.mark.slow


def killed(lab, gateway):
    """End a gateway as a power cut would."""
    processes = gateway.processes()
    gateway.stop(signal.SIGKILL)
    lab.until(lambda: not lab.alive(processes))


def test_each_job_has_one_result_though_the_gateway_is_killed(lab, tmp_path):
    trail = tmp_path / "trail"
    lab.publish("unit", settings={"model.max_batch": 2})
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    jobs = {f"t{n}": submit(gateway, f"t{n}", do="sleep", seconds=0.15, trail=str(trail), headers={"Idempotency-Key": f"k{n}"}) for n in range(24)}
    batch = gateway.client.post("/scenarios/unit/jobs?batch=1", json=[{"text": f"b{n}", "do": "sleep", "seconds": 0.01} for n in range(30)]).json()
    lab.until(lambda: len(lines(trail)) >= 3)
    states = [job_of(gateway, job)["state"] for job in jobs.values()]
    assert states.count("queued") >= 20
    assert "running" in states
    killed(lab, gateway)
    before = lines(trail)

    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    for text, job in jobs.items():
        assert ended(lab, gateway, job, 60)["state"] == "done"
        assert gateway.client.get(job["result"]).json()["text"] == text
    assert ended(lab, gateway, batch)["state"] == "done"
    assert [each["text"] for each in gateway.client.get(batch["result"]).json()] == [f"b{n}" for n in range(30)]
    ran = lines(trail)
    assert set(ran) == set(jobs)
    again = {text for text in ran if ran.count(text) > 1}
    assert again <= set(before)  # only what may have been running was run again
    assert len(again) <= 4
    assert submit(gateway, "t5", do="sleep", seconds=0.15, trail=str(trail), headers={"Idempotency-Key": "k5"})["id"] == jobs["t5"]["id"]
    assert len(gateway.client.get("/jobs?limit=500").json()["jobs"]) == 25


def test_what_is_not_pure_is_not_run_again_after_a_restart(lab, tmp_path):
    trail = tmp_path / "trail"
    lab.publish("unit", settings={"model.pure": False, "model.max_batch": 1})
    gateway = lab.start({"unit": "unit"}, "gateway.jobs_at_once=1")
    gateway.ready("unit")
    running = submit(gateway, "running", do="sleep", seconds=2, trail=str(trail))
    queued = submit(gateway, "queued", trail=str(trail))
    lab.until(lambda: lines(trail))
    killed(lab, gateway)
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    found = ended(lab, gateway, running)
    assert (found["state"], found["error"]["code"]) == ("failed", "SCN-4125")
    assert gateway.client.get(running["result"]).status_code == 500
    assert ended(lab, gateway, queued)["state"] == "done"
    assert lines(trail) == ["running", "queued"]


def test_sigterm_lets_what_runs_end_and_keeps_the_rest(lab, tmp_path):
    trail = tmp_path / "trail"
    lab.publish("unit", settings={"model.max_batch": 1})
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    jobs = [submit(gateway, f"t{n}", do="sleep", seconds=1, trail=str(trail)) for n in range(3)]
    lab.until(lambda: lines(trail))
    assert gateway.stop() == 0
    assert lines(trail) == ["t0"]  # no other was begun
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    assert job_of(gateway, jobs[0])["state"] == "done"
    for job in jobs:
        assert ended(lab, gateway, job)["state"] == "done"
    assert lines(trail) == [f"t{n}" for n in range(3)]


def test_a_pure_job_that_outlasts_the_drain_is_run_again(lab, tmp_path):
    trail = tmp_path / "trail"
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"}, "gateway.drain_s=0.5")
    gateway.ready("unit")
    job = submit(gateway, "long", do="sleep", seconds=3, trail=str(trail))
    lab.until(lambda: lines(trail))
    began = time.monotonic()
    assert gateway.stop() == 0
    assert time.monotonic() - began < 2.5
    gateway = lab.start({"unit": "unit"})
    assert ended(lab, gateway, job)["state"] == "done"
    assert lines(trail) == ["long", "long"]


def test_a_workers_death_costs_no_job(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    jobs = [submit(gateway, f"t{n}", do="sleep", seconds=0.3) for n in range(3)]
    stream = submit(gateway, "s", "?stream=1", n=3, seconds=0.5)
    time.sleep(0.2)
    os.kill(gateway.client.get("/scenarios/unit").json()["workers"][0]["pid"], signal.SIGKILL)
    for job in (*jobs, stream):
        assert ended(lab, gateway, job)["state"] == "done"
    poison = submit(gateway, "p", do="kill")
    assert ended(lab, gateway, poison)["error"]["code"] == "SCN-4009"


def test_a_new_version_waits_for_a_running_job_of_the_old_one(lab, tmp_path):
    """Longer than a single request may take: what is not pure could not be run again."""
    trail = tmp_path / "trail"
    lab.publish("unit", settings={"model.pure": False})
    gateway = lab.start({"unit": "unit"}, "scenarios.unit.serve.deadline_ms=500")
    gateway.ready("unit")
    job = submit(gateway, "long", do="sleep", seconds=8, trail=str(trail))
    lab.until(lambda: lines(trail))
    lab.publish("unit", settings={"model.pure": False, "model.answer": "two"})
    gateway.wait_event("version_served", version=2)
    assert gateway.ask("unit").json()["answer"] == "two"
    assert job_of(gateway, job)["state"] == "running"
    found = ended(lab, gateway, job)
    assert (found["state"], found["version"]) == ("done", 1)


def test_a_scenario_that_is_gone_keeps_its_jobs(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"}, "gateway.jobs_at_once=1")
    gateway.ready("unit")
    submit(gateway, "blocker", do="sleep", seconds=1)
    job = submit(gateway, "kept")
    killed(lab, gateway)
    gateway = lab.start({"other": "unit"})
    assert job_of(gateway, job)["state"] == "queued"
    assert gateway.stop() == 0
    gateway = lab.start({"unit": "unit"})
    assert ended(lab, gateway, job)["state"] == "done"
