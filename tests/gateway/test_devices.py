"""What goes wrong on an accelerator, as whole processes: too little memory, and a device that is lost to its worker."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

SETTINGS = {"plain": {}, "small": {"fits": 3}, "none": {"fits": 0}, "impure": {"pure": False}}


@pytest.fixture(scope="module")
def gateway(shared_lab):
    """Scenarios of the plugin ``accelerator``, whose workers have torch, and another one."""
    for name, settings in SETTINGS.items():
        shared_lab.publish(name, "accelerator", settings={f"model.{key}": value for key, value in settings.items()}, preload=["torch"])
    shared_lab.publish("unit")
    found = shared_lab.start({"accelerator": "accelerator", "unit": "unit"}, *(f"scenarios.{name}.plugin=accelerator" for name in SETTINGS))
    found.ready(*SETTINGS, "unit", timeout=90)
    return found


def together(lab, gateway, name, count, **odd):
    """Answers of ``count`` requests that reach the worker as one batch; the fourth does what ``odd`` says."""
    with ThreadPoolExecutor(count + 1) as pool:
        blocker = pool.submit(gateway.ask, name, "blocker", seconds=0.6)
        lab.until(lambda: metric(gateway, f'scenarium_requests_open{{scenario="{name}"}}') == 1)
        asked = [pool.submit(gateway.ask, name, f"t{n}", **(odd if n == 3 else {})) for n in range(count)]
        assert blocker.result().status_code == 200
        return [answer.result() for answer in asked]


def metric(gateway, line):
    return float(next(each for each in gateway.client.get("/metrics").text.splitlines() if each.startswith(line + " ")).rpartition(" ")[2])


def pid_of(gateway, name):
    return gateway.client.get(f"/scenarios/{name}").json()["workers"][0]["pid"]


def lines(gateway, name):
    return [line["line"] for line in gateway.client.get(f"/admin/logs/{name}").json()["lines"]]


def test_out_of_memory_halves_the_batch_and_is_remembered(shared_lab, gateway):
    before = pid_of(gateway, "small")
    for _ in range(2):
        found = together(shared_lab, gateway, "small", 16)
        assert [answer.status_code for answer in found] == [200] * 16
        assert [answer.json()["text"] for answer in found] == [f"t{n}" for n in range(16)]
        assert {answer.json()["batch"] for answer in found} == {2}
    told = [line for line in lines(gateway, "small") if line.startswith("Out of memory")]
    assert [line.split()[7].rstrip(";") for line in told] == ["16", "8", "4"]
    assert pid_of(gateway, "small") == before


def test_an_item_that_has_no_room_alone_fails_alone(gateway):
    answer = gateway.ask("none", "large", headers={"Accept-Language": "zh"})
    assert (answer.status_code, answer.json()["code"]) == (503, "SCN-4043")
    assert "内存不足" in answer.json()["title"]


@pytest.mark.parametrize("way", ["assert", "driver"])
def test_a_lost_device_replaces_that_worker_only_and_the_batch_runs_again(shared_lab, gateway, tmp_path, way):
    before, neighbours = pid_of(gateway, "plain"), {name: pid_of(gateway, name) for name in ("unit", "small")}
    found = together(shared_lab, gateway, "plain", 8, do=way, once=str(tmp_path / "once"))
    assert [answer.status_code for answer in found] == [200] * 8
    assert [answer.json()["text"] for answer in found] == [f"t{n}" for n in range(8)]
    assert {answer.json()["pid"] for answer in found} == {pid_of(gateway, "plain")} != {before}
    assert neighbours == {name: pid_of(gateway, name) for name in neighbours}
    assert "The device is lost to this worker." in lines(gateway, "plain")
    shared_lab.until(lambda: "status 71" in (gateway.client.get("/scenarios/plain").json()["last_fault"] or {"error": {"title": ""}})["error"]["title"])


def test_who_loses_the_device_each_time_fails_alone(shared_lab, gateway):
    found = together(shared_lab, gateway, "plain", 8, do="assert")
    assert [answer.status_code for answer in found] == [200] * 3 + [500] + [200] * 4
    assert found[3].json()["code"] == "SCN-4009"


def test_what_is_not_pure_is_not_run_again(gateway, tmp_path):
    before, once = pid_of(gateway, "impure"), str(tmp_path / "once")
    answer = gateway.ask("impure", "x", do="assert", once=once)
    assert (answer.status_code, answer.json()["code"]) == (503, "SCN-4008")
    assert gateway.ask("impure", "x", do="assert", once=once).json()["pid"] != before


def test_a_stream_that_loses_the_device_ends_with_an_error(gateway):
    before = pid_of(gateway, "impure")
    answer = gateway.client.post("/scenarios/impure/stream", json={"text": "x", "do": "assert"})
    assert "event: error" in answer.text
    assert "SCN-4008" in answer.text
    assert gateway.ask("impure", "x").json()["pid"] != before


def test_words_alone_lose_no_device(gateway):
    before = pid_of(gateway, "small")
    answer = gateway.ask("small", "x", do="said")
    assert (answer.status_code, answer.json()["code"]) == (500, "SCN-4003")
    assert gateway.ask("small", "x").json()["pid"] == before


def test_a_devices_memory_is_a_budget_too(lab, tmp_path):
    card = tmp_path / "card"
    card.mkdir()
    names = [f"m{number}" for number in range(5)]
    for name in names:
        lab.publish(name, "accelerator", settings={"model.card": str(card)})
    lab.publish("huge", "accelerator", settings={"model.card": str(card), "model.gb": 15})
    for note in card.iterdir():  # of this process, which made the versions
        note.unlink()
    sets = [f"scenarios.{name}.{setting}" for name in [*names, "huge"] for setting in ("plugin=accelerator", "serve.device=cuda:0", "serve.worker_group=")]
    gateway = lab.start({"accelerator": "accelerator"}, *sets, "gateway.residence_s=0")
    limit = int(0.9 * (16 << 30))
    lab.until(lambda: all(each["state"] in ("ready", "idle") for each in gateway.client.get("/scenarios").json()["scenarios"] if each["name"] in names))

    def held():
        return sum(int(note.read_text()) for note in card.iterdir() if lab.alive({int(note.name.split()[0])}))

    lab.until(lambda: metric(gateway, 'scenarium_device_memory_budget_bytes{device="cuda:0"}') == limit)  # the first worker has said how much there is
    lab.until(lambda: held() <= limit)  # where all were loaded before that, none may be left
    for name in names:  # its files do not tell what it needs there: it is known once it was loaded
        assert gateway.ask(name).status_code == 200
        lab.until(lambda: held() <= limit)
    for name in names:
        assert gateway.ask(name).status_code == 200
        assert held() <= limit
    assert sum(metric(gateway, f'scenarium_evictions_total{{scenario="{name}"}}') for name in names) >= 5
    lab.until(lambda: gateway.ask("huge").json().get("code") == "SCN-4041")  # once it was measured
    told = lab.until(lambda: (found := gateway.client.get("/admin/status").json()["gateway"]["devices"]["cuda:0"])["used_mb"] == held() >> 20 and found)
    assert told["budget_mb"] == limit >> 20
