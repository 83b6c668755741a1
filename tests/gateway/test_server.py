"""How a gateway starts and ends."""

from __future__ import annotations

import signal
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
