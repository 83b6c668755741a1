"""How a gateway starts and ends."""

from __future__ import annotations

import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from scenarium.core.config import GatewayConfig
from scenarium.core.registry import Registry
from scenarium.core.settings import Settings
from scenarium.core.store import Store
from scenarium.gateway.server import serve


def test_a_second_ctrl_c_ends_open_requests_at_once(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    processes = gateway.processes()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(gateway.ask, "unit", do="hang")
        lab.until(lambda: 'scenarium_requests_open{scenario="unit"} 1.0' in gateway.client.get("/metrics").text)
        gateway.popen.send_signal(signal.SIGINT)
        gateway.wait_event("draining")
        gateway.popen.send_signal(signal.SIGTERM)  # a second SIGTERM hurries nobody
        time.sleep(0.3)
        assert not answer.done()
        gateway.popen.send_signal(signal.SIGINT)
        assert answer.result(10).json()["code"] == "SCN-4013"
    assert gateway.popen.wait(10) == 0
    lab.until(lambda: not lab.alive(processes))


def test_what_outlasts_the_drain_is_given_up_and_the_end_is_orderly(lab):
    names = ["unit", "kept", "streamed"]
    for name in names:
        lab.publish(name, "unit")
    others = [f"scenarios.{name}.plugin=unit" for name in names[1:]]
    audit = lab.folder / "audit.jsonl"
    gateway = lab.start({"unit": "unit"}, *others, "scenarios.kept.serve.cache_size=10000", "gateway.drain_s=1", f"gateway.audit={audit}")
    gateway.ready(*names)
    processes = gateway.processes()
    host, port = gateway.url.removeprefix("http://").split(":")
    body = json.dumps({"text": "x", "do": "sleep", "seconds": 9.0}).encode()
    late = []
    for name in names[:2]:  # whole only when the drain is over
        late.append(socket.create_connection((host, int(port))))
        late[-1].sendall(b"POST /scenarios/%s/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (name.encode(), len(body)))
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(gateway.ask, name, do="sleep", seconds=8.0) for name in names[:2]]
        streamed = pool.submit(gateway.client.post, "/scenarios/streamed/stream", json={"text": "x", "seconds": 4.0})
        lab.until(lambda: all(f'scenarium_requests_open{{scenario="{name}"}} 1.0' in gateway.client.get("/metrics").text for name in names))
        began = time.monotonic()
        gateway.popen.send_signal(signal.SIGTERM)
        answers = [each.result() for each in asked]
        assert 1.0 <= time.monotonic() - began < 2.5
        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(503, "SCN-4013")] * 2
        assert streamed.result().text.count('"part"') == 1
        assert "SCN-4013" in streamed.result().text
    for connection in late:
        connection.sendall(body)
    assert gateway.popen.wait(10) == 0
    assert time.monotonic() - began < 7
    for connection in late:
        connection.close()
    lab.until(lambda: not lab.alive(processes))
    assert gateway.events[-1]["event"] == "stopped"
    assert gateway.events[-2]["event"] == "audit_head"
    assert len(audit.read_text().splitlines()) == gateway.events[-2]["n"] == 5
    faults = [event for event in gateway.events if event["event"] in ("gateway_fault", "worker_garbled") or event.get("logger") == "asyncio"]
    assert not faults


def test_an_address_that_is_taken_is_the_callers_error(lab):
    gateway = lab.start({"unit": "unit"})
    port = int(gateway.url.rpartition(":")[2])
    settings = Settings.read(environ={})
    with pytest.raises(OSError, match="in use"):
        serve(Registry(settings, {}), Store(str(lab.folder / "other")), GatewayConfig(port=port))


def test_a_damaged_alias_file_stops_its_own_scenario_only(lab):
    lab.publish("unit")
    lab.publish("other", "unit")
    (lab.folder / "store" / "scenarios" / "other" / "aliases.json").write_text("{")
    gateway = lab.start({"unit": "unit"}, "scenarios.other.plugin=unit")
    gateway.ready("unit")
    lab.until(lambda: gateway.client.get("/scenarios/other").json()["state"] == "failed")
    assert gateway.ask("other").json()["code"] == "SCN-5009"
