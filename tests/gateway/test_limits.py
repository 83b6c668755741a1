"""How much a key may do: in a time, in a day, over several gateways."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from scenarium.core.errors import ScenariumError
from scenarium.gateway.keys import Key, KeyFile, Rate
from scenarium.gateway.limits import Limited, Limits, Shared
from tests.gateway.conftest import redis_server


def key(rate: Rate | None = None, daily: int | None = None) -> Key:
    return Key("k", b"", None, False, 0.0, rate=rate, daily=daily)


# ── counting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_window_may_be_spent_at_once_and_then_goes_on_evenly():
    limits, ten = Limits(), key(Rate(10, 5))
    for n in range(10):
        assert dict(limits.headers(ten, 100.0))[b"ratelimit-remaining"] == b"%d" % (10 - n)
        limits.take(ten, 100.0)
    with pytest.raises(Limited) as refused:
        limits.take(ten, 100.0)
    assert refused.value.code == "SCN-4105"
    assert refused.value.wait == pytest.approx(0.5)
    assert dict(refused.value.headers) == {
        b"retry-after": b"1",
        b"ratelimit-limit": b"10",
        b"ratelimit-remaining": b"0",
        b"ratelimit-reset": b"5",
        b"ratelimit-policy": b"10;w=5",
    }
    with pytest.raises(Limited):
        limits.take(ten, 100.49)
    limits.take(ten, 100.51)
    with pytest.raises(Limited):
        limits.take(ten, 100.52)
    for _ in range(10):
        limits.take(ten, 200.0)
    with pytest.raises(Limited):
        limits.take(ten, 200.0)


def test_no_window_lets_more_in_than_its_limit_and_what_came_back():
    limits, three = Limits(), key(Rate(30, 3))
    let_in = []
    for step in range(4000):
        now = step / 200
        try:
            limits.take(three, now)
            let_in.append(now)
        except Limited:
            continue
    assert len(let_in) == pytest.approx(30 + 20 * 10, abs=1), "one window at once, then 10 a second for 20 s"


def test_the_day_ends_at_midnight_utc(monkeypatch):
    at = 20_781 * 86_400.0 - 10  # 10 s before a midnight UTC
    monkeypatch.setattr(time, "time", lambda: at)
    limits, two = Limits(), key(daily=2)
    limits.turn()
    limits.saved(limits.day, {}, {"k": 1})  # a former process counted one
    limits.take(two, 0.0)
    with pytest.raises(Limited) as refused:
        limits.take(two, 0.0)
    assert (refused.value.code, refused.value.wait) == ("SCN-4106", 10.0)
    assert limits.unsaved == {"k": 1}
    at += 11
    limits.take(two, 0.0)
    assert limits.used == {"k": 1}


def test_what_comes_while_the_use_is_saved_is_kept():
    limits, many = Limits(), key(daily=1000)
    for _ in range(5):
        limits.take(many, 0.0)
    written = dict(limits.unsaved)
    limits.take(many, 0.0)
    limits.saved(limits.day, written, {"k": 12})  # 5 of ours, 7 of another gateway
    assert (limits.used, limits.unsaved) == ({"k": 13}, {"k": 1})


def test_a_limit_costs_a_few_microseconds():
    limits, each = Limits(), key(Rate(1_000_000, 60), 10_000_000)
    took = []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(200):
            limits.take(each, 1.0)
        took.append((time.perf_counter() - began) / 200)
    assert min(took) < 10e-6


# ── Redis ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def redis(tmp_path):
    """A Redis server of its own: port and process."""
    with redis_server(tmp_path) as found:
        yield found


async def answering(shared: Shared) -> None:
    """Wait until Redis answers."""
    end = time.monotonic() + 10
    while not await shared.storage.check():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


def test_two_gateways_count_together(redis, capfd):
    port, process = redis
    ten, few = key(Rate(10, 60)), key(daily=4)

    async def let_in(gateways: list[Shared], each: Key, day: str) -> tuple[int, list[Limited]]:
        count, refused = 0, []
        for n in range(30):
            try:
                await gateways[n % 2].take(each, day, 50.0)
                count += 1
            except Limited as fault:
                refused.append(fault)
        return count, refused

    async def ask() -> None:
        gateways = [Shared(f"redis://127.0.0.1:{port}/0") for _ in range(2)]
        await answering(gateways[0])
        count, refused = await let_in(gateways, ten, "2026-11-24")
        assert count == 10
        assert {fault.code for fault in refused} == {"SCN-4105"}
        assert all(0 < fault.wait <= 60 for fault in refused)
        count, refused = await let_in(gateways, few, "2026-11-24")
        assert count == 4
        assert {fault.code for fault in refused} == {"SCN-4106"}
        assert (await let_in(gateways, few, "2026-11-25"))[0] == 4, "a new day"
        process.kill()
        process.wait()
        assert (await let_in(gateways, ten, "2026-11-24"))[0] == 30, "a counter that is down stops nobody"
        for gateway in gateways:
            await gateway.close()

    asyncio.run(ask())
    assert capfd.readouterr().err.count("redis_unavailable") == 2, "each gateway says so once"


def test_a_redis_that_is_away_stops_nobody(capfd):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]

    async def ask() -> float:
        shared = Shared(f"redis://127.0.0.1:{port}/0")
        began = time.monotonic()
        for _ in range(100):
            await shared.take(key(Rate(1, 60), 1), "2026-11-24", 50.0)
        took = time.monotonic() - began
        await shared.close()
        return took

    assert asyncio.run(ask()) < 2
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["redis_unavailable"], "told once, and then left alone for a while"


def test_a_wrong_redis_url_is_refused():
    with pytest.raises(ScenariumError, match="SCN-1107"):
        Shared("http://localhost")


# ── a gateway ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def file(shared_lab):
    return KeyFile(shared_lab.folder / "keys.sqlite")


@pytest.fixture(scope="module")
def gateway(shared_lab, file):
    shared_lab.publish("unit")
    file.create()  # from the start every request needs a key
    found = shared_lab.start(
        {"unit": "unit"},
    )
    found.client.headers = bearer(file, shared_lab, found)
    found.ready("unit")
    return found


def bearer(file, lab, gateway, **options) -> dict[str, str]:
    """A key that the gateway knows."""
    _, text = file.create(**options)
    headers = {"Authorization": f"Bearer {text}"}
    lab.until(lambda: gateway.client.get("/scenarios", headers=headers).status_code == 200)
    return headers


def rejected(gateway, reason: str) -> float:
    return float(re.search(rf'scenarium_rejected_total{{reason="{reason}"}} (\S+)', gateway.client.get("/metrics").text)[1])


@pytest.mark.alone
def test_a_rate_refuses_fast_and_says_when_to_come_back(gateway, file, shared_lab):
    headers = bearer(file, shared_lab, gateway, rate=Rate(20, 10))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: gateway.ask("unit", headers=headers), range(40)))
    good = [answer for answer in answers if answer.status_code == 200]
    assert 20 <= len(good) <= 23  # one comes back each half second
    assert {answer.headers["RateLimit-Limit"] for answer in good} == {"20"}
    assert sorted(int(answer.headers["RateLimit-Remaining"]) for answer in good)[-1] == 19
    took = []
    for _ in range(20):
        answer = gateway.ask("unit", headers=headers)
        took.append(answer.elapsed.total_seconds())
        if answer.status_code == 429:
            assert answer.json()["code"] == "SCN-4105"
            assert (answer.headers["Retry-After"], answer.headers["RateLimit-Remaining"], answer.headers["RateLimit-Policy"]) == ("1", "0", "20;w=10")
    assert sorted(took)[-3] < 0.005
    assert gateway.ask("unit").status_code == 200, "another key is not touched"
    assert rejected(gateway, "rate") >= 15


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(lab):
    lab.publish("unit", settings={"model.max_batch": 1})
    gateway = lab.start({"unit": "unit"}, "scenarios.unit.serve.queue_size=2")
    gateway.ready("unit")
    with ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(gateway.ask, "unit", do="sleep", seconds=0.7) for _ in range(3)]
        lab.until(lambda: 'scenarium_queue_depth{scenario="unit"} 2.0' in gateway.client.get("/metrics").text)
        refused = [gateway.ask("unit") for _ in range(5)]
        assert not any(answer.done() for answer in accepted[1:])
        assert {(answer.status_code, answer.json()["code"], answer.headers["Retry-After"]) for answer in refused} == {(503, "SCN-4006", "1")}
        assert max(answer.elapsed.total_seconds() for answer in refused) < 0.2
        assert [answer.result().status_code for answer in accepted] == [200] * 3
    assert 'scenarium_requests_total{outcome="busy",scenario="unit"} 5.0' in gateway.client.get("/metrics").text


def test_a_batch_counts_each_item_and_waits_its_turn(gateway, file, shared_lab):
    headers = bearer(file, shared_lab, gateway, rate=Rate(20, 2))
    items = [{"text": str(n)} for n in range(35)]
    before, began = rejected(gateway, "rate"), time.monotonic()
    answer = gateway.client.post("/scenarios/unit/predict/batch", json=items, headers=headers)
    assert [found["text"] for found in answer.json()] == [item["text"] for item in items]
    assert 1.3 < time.monotonic() - began < 4, "20 at once, the other 15 at 10 a second"
    assert rejected(gateway, "rate") == before
    short = gateway.client.post("/scenarios/unit/predict/batch", json=items, headers=headers | {"X-Scenarium-Deadline-Ms": "20"})
    codes = {found.get("code") for found in short.json()} if short.status_code == 200 else {short.json()["code"]}
    assert "SCN-4105" in codes, "a turn that comes after the deadline is an error in its place"


def test_a_daily_quota_holds_across_restarts(lab):
    lab.publish("unit")
    file = KeyFile(lab.folder / "keys.sqlite")
    few, text = file.create(daily=5)
    headers = {"Authorization": f"Bearer {text}"}
    gateway = lab.start({"unit": "unit"})
    lab.until(lambda: gateway.client.get("/scenarios/unit/ready", headers=headers).status_code == 200, 30)
    assert [gateway.ask("unit", headers=headers).status_code for _ in range(3)] == [200] * 3
    assert gateway.stop() == 0
    assert list(file.usage(time.strftime("%Y-%m-%d", time.gmtime())).values()) == [3]
    again = lab.start({"unit": "unit"})
    lab.until(lambda: again.client.get("/scenarios/unit/ready", headers=headers).status_code == 200, 30)
    answers = [again.ask("unit", headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["code"] == "SCN-4106"
    assert 0 < int(answers[2].headers["Retry-After"]) <= 86_400
    assert few.id in answers[2].json()["title"]
