"""Settings that change under a running gateway."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

TABLE = '[scenarios.other]\nplugin = "unit"\n[scenarios.unit.serve]\nworkers = {workers}\nqueue_size = {queue}\n'


def reload(gateway):
    seen = sum(e["event"] == "reloaded" for e in gateway.events)
    os.kill(gateway.popen.pid, signal.SIGHUP)
    return lambda: [e for e in gateway.events if e["event"] == "reloaded"][seen:]


@pytest.fixture
def gateway(lab):
    lab.publish("unit")
    lab.publish("other", "unit")
    lab.publish("third", "unit")
    (lab.folder / "scenarios.toml").write_text(TABLE.format(workers=1, queue=64))
    found = lab.start({"unit": "unit"})
    found.ready("unit", "other")
    return found


def test_what_no_worker_knows_changes_without_new_workers(lab, gateway):
    before = gateway.client.get("/scenarios/unit").json()["workers"]
    (lab.folder / "scenarios.toml").write_text(TABLE.format(workers=1, queue=1) + "deadline_ms = 1234\n")
    assert lab.until(reload(gateway))[0]["changed"] == ["unit"]
    details = gateway.client.get("/scenarios/unit").json()
    assert details["deadline_ms"] == 1234
    assert details["workers"] == before
    with ThreadPoolExecutor(8) as pool:
        codes = [a.result().status_code for a in [pool.submit(gateway.ask, "unit", "x", do="sleep", seconds=0.3) for _ in range(8)]]
    assert set(codes) == {200, 503}


def test_scenarios_come_and_go(lab, gateway):
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(gateway.ask, "other", "late", do="sleep", seconds=1.0)
        lab.until(lambda: 'scenarium_requests_open{scenario="other"} 1.0' in gateway.client.get("/metrics").text)
        (lab.folder / "scenarios.toml").write_text('[scenarios.third]\nplugin = "unit"\n')
        told = lab.until(reload(gateway))[0]
        assert (told["added"], told["removed"]) == (["third"], ["other"])
        assert gateway.ask("other").status_code == 404
        assert late.result().status_code == 200
    gateway.ready("third")
    assert gateway.ask("third").status_code == 200
    lab.until(lambda: len(gateway.processes()) == 4)  # gateway, zygote, two workers


def test_a_version_that_loads_when_its_scenario_is_removed_leaves_no_worker(lab, gateway):
    number = lab.publish("unit", settings={"model.load_seconds": 1.5})
    gateway.wait_event("version_loading", scenario="unit", version=number)
    lab.until(lambda: len(gateway.processes()) == 5)  # gateway, zygote, two workers, and the one that loads
    (lab.folder / "scenarios.toml").write_text('[scenarios.other]\nplugin = "unit"\n[scenarios.unit]\nenabled = false\n')
    assert lab.until(reload(gateway))[0]["removed"] == ["unit"]
    lab.until(lambda: len(gateway.processes()) == 3, 5)


def test_kept_answers_are_forgotten_where_other_workers_come_back(lab, gateway):
    kept = "cache_size = 100000\n"
    (lab.folder / "scenarios.toml").write_text(TABLE.format(workers=1, queue=64) + kept)
    lab.until(reload(gateway))
    before = [gateway.ask("unit") for _ in range(2)]
    assert [answer.headers["x-scenarium-cache"] for answer in before] == ["miss", "hit"]
    assert gateway.client.post("/v2/repository/models/unit/unload").status_code == 200
    (lab.folder / "scenarios.toml").write_text(TABLE.format(workers=1, queue=64) + kept + "threads = 2\n")
    lab.until(reload(gateway))
    assert gateway.client.post("/v2/repository/models/unit/load").status_code == 200
    after = gateway.ask("unit")
    assert after.headers["x-scenarium-cache"] == "miss"
    assert after.json()["pid"] != before[0].json()["pid"]


def test_wrong_settings_change_nothing(lab, gateway):
    before = gateway.client.get("/scenarios/unit").json()["workers"]
    (lab.folder / "scenarios.toml").write_text("[scenarios.unit\n")
    os.kill(gateway.popen.pid, signal.SIGHUP)
    refused = gateway.wait_event("reload_refused")
    assert refused["code"] == "SCN-1005"
    (lab.folder / "scenarios.toml").write_text(TABLE.format(workers=-2, queue=64))
    assert lab.until(reload(gateway))[0]["refused"] == ["unit"]
    details = gateway.client.get("/scenarios/unit").json()
    assert "workers" in details["last_fault"]["error"]["title"]
    assert details["workers"] == before
    assert gateway.ask("unit").status_code == 200


def test_administration_over_http(lab, gateway):
    (lab.folder / "scenarios.toml").write_text(TABLE.format(workers=1, queue=64) + '[scenarios.third]\nplugin = "unit"\n')
    told = gateway.client.post("/admin/reload", json={}).json()
    assert told == {"added": ["third"], "removed": [], "changed": [], "restarted": [], "refused": []}
    gateway.ready("third")
    gateway.ask("unit", "spoken", do="print")
    lines = lab.until(lambda: gateway.client.get("/admin/logs/unit").json()["lines"])
    assert "to stderr: spoken" in [line["line"] for line in lines]
    assert gateway.client.get("/admin/logs/unit", params={"after": lines[-1]["number"]}).json()["lines"] == []
    status = gateway.client.get("/admin/status").json()
    unit = next(each for each in status["scenarios"] if each["name"] == "unit")
    assert unit["ready"]
    assert unit["outcomes"]["ok"] == sum(unit["latency_counts"]) == 1
    assert 1 < unit["workers"][0]["memory_mb"] < 500
    assert status["gateway"]["pid"] == gateway.popen.pid
