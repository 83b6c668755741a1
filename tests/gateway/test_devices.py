"""What goes wrong on an accelerator, as whole processes: too little memory, and a device that is lost to its worker."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture
def start(lab):
    """A gateway with the scenario ``accelerator`` in a worker that has torch."""

    def begin(**settings):
        lab.publish("accelerator", settings={f"model.{key}": value for key, value in settings.items()}, preload=["torch"])
        lab.publish("unit")
        gateway = lab.start({"accelerator": "accelerator", "unit": "unit"})
        gateway.ready("accelerator", "unit", timeout=60)
        return gateway

    return begin


def together(lab, gateway, count, **odd):
    """Answers of ``count`` requests that reach the worker as one batch; the fourth does what ``odd`` says."""
    with ThreadPoolExecutor(count + 1) as pool:
        blocker = pool.submit(gateway.ask, "accelerator", "blocker", seconds=0.6)
        depth = 'scenarium_requests_open{scenario="accelerator"} %d.0'
        lab.until(lambda: depth % 1 in gateway.client.get("/metrics").text)
        asked = [pool.submit(gateway.ask, "accelerator", f"t{n}", **(odd if n == 3 else {})) for n in range(count)]
        assert blocker.result().status_code == 200
        return [answer.result() for answer in asked]


def pid_of(gateway, name):
    return gateway.client.get(f"/scenarios/{name}").json()["workers"][0]["pid"]


def lines(gateway):
    return [line["line"] for line in gateway.client.get("/admin/logs/accelerator").json()["lines"]]


def test_out_of_memory_halves_the_batch_and_is_remembered(lab, start):
    gateway = start(fits=3)
    before = pid_of(gateway, "accelerator")
    for _ in range(2):
        found = together(lab, gateway, 16)
        assert [answer.status_code for answer in found] == [200] * 16
        assert [answer.json()["text"] for answer in found] == [f"t{n}" for n in range(16)]
        assert {answer.json()["batch"] for answer in found} == {2}
    told = [line for line in lines(gateway) if line.startswith("Out of memory")]
    assert [line.split()[7].rstrip(";") for line in told] == ["16", "8", "4"]
    assert pid_of(gateway, "accelerator") == before


def test_an_item_that_has_no_room_alone_fails_alone(start):
    gateway = start(fits=0)
    answer = gateway.ask("accelerator", "large", headers={"Accept-Language": "zh"})
    assert (answer.status_code, answer.json()["code"]) == (503, "SCN-4043")
    assert "内存不足" in answer.json()["title"]


@pytest.mark.parametrize("way", ["assert", "driver"])
def test_a_lost_device_replaces_that_worker_only_and_the_batch_runs_again(lab, start, tmp_path, way):
    gateway = start()
    before, neighbour = pid_of(gateway, "accelerator"), pid_of(gateway, "unit")
    found = together(lab, gateway, 8, do=way, once=str(tmp_path / "once"))
    assert [answer.status_code for answer in found] == [200] * 8
    assert [answer.json()["text"] for answer in found] == [f"t{n}" for n in range(8)]
    assert {answer.json()["pid"] for answer in found} == {pid_of(gateway, "accelerator")} != {before}
    assert pid_of(gateway, "unit") == neighbour
    assert "The device is lost to this worker." in lines(gateway)
    fault = lab.until(lambda: gateway.client.get("/scenarios/accelerator").json()["last_fault"])
    assert "status 71" in fault["error"]["title"]


def test_who_loses_the_device_each_time_fails_alone(lab, start):
    gateway = start()
    found = together(lab, gateway, 8, do="assert")
    assert [answer.status_code for answer in found] == [200] * 3 + [500] + [200] * 4
    assert found[3].json()["code"] == "SCN-4009"


def test_what_is_not_pure_is_not_run_again(start, tmp_path):
    gateway = start(pure=False)
    before = pid_of(gateway, "accelerator")
    answer = gateway.ask("accelerator", "x", do="assert", once=str(tmp_path / "once"))
    assert (answer.status_code, answer.json()["code"]) == (503, "SCN-4008")
    assert gateway.ask("accelerator", "x", do="assert", once=str(tmp_path / "once")).json()["pid"] != before


def test_a_stream_that_loses_the_device_ends_with_an_error(start):
    gateway = start()
    before = pid_of(gateway, "accelerator")
    answer = gateway.client.post("/scenarios/accelerator/stream", json={"text": "x", "do": "assert"})
    assert "event: error" in answer.text
    assert "SCN-4008" in answer.text
    assert gateway.ask("accelerator", "x").json()["pid"] != before


def test_words_alone_lose_no_device(start):
    gateway = start()
    before = pid_of(gateway, "accelerator")
    answer = gateway.ask("accelerator", "x", do="said")
    assert (answer.status_code, answer.json()["code"]) == (500, "SCN-4003")
    assert gateway.ask("accelerator", "x").json()["pid"] == before
