"""The access log of real gateways: one line a request, and what it must not hold."""

from __future__ import annotations

import pytest

from scenarium.gateway.access_log import AccessLog
from scenarium.gateway.keys import KeyFile, Rate

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
MEMBERS = {"at", "level", "event", "request_id", "scenario", "method", "path", "version", "status", "ms", "key", "trace_id", "cache"}


@pytest.fixture(scope="module")
def key(shared_lab):
    return KeyFile(shared_lab.folder / "keys.sqlite").create()


@pytest.fixture(scope="module")
def served(shared_lab, key):
    shared_lab.publish("unit")
    gateway = shared_lab.start({"unit": "unit"}, "gateway.access_log=1", "scenarios.unit.serve.cache_size=100000")
    gateway.client.headers["Authorization"] = f"Bearer {key[1]}"
    gateway.ready("unit")
    return gateway


def test_a_line_says_who_asked_what_and_how_it_ended(served, key) -> None:
    headers = {"X-Request-Id": "line-1", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    served.ask("unit", "a secret", do="sleep", seconds=0.05, headers=headers)
    line = served.wait_event("request", request_id="line-1")
    assert set(line) == MEMBERS
    assert (
        line.items()
        >= {
            "scenario": "unit",
            "method": "POST",
            "path": "/scenarios/unit/predict",
            "version": 1,
            "status": 200,
            "key": key[0].id,
            "trace_id": TRACE,
            "cache": "miss",
        }.items()
    )
    assert 50 <= line["ms"] < 5000
    served.ask("unit", "a secret", do="sleep", seconds=0.05, headers={"X-Request-Id": "line-2"})
    hit = served.wait_event("request", request_id="line-2")
    assert (hit["cache"], hit["status"], hit["version"], hit["trace_id"]) == ("hit", 200, 1, None)
    text = str(served.events) + "".join(served.noise)
    assert key[1] not in text
    assert "a secret" not in text


def test_each_request_has_one_line_whatever_became_of_it(served) -> None:
    wanted = {
        "e1": ("unit", 422, served.client.post("/scenarios/unit/predict", json={"txt": 1}, headers={"X-Request-Id": "e1"})),
        "e2": ("unit", 500, served.ask("unit", "x", do="raise", headers={"X-Request-Id": "e2"})),
        "e3": ("unit", 504, served.ask("unit", "x", do="sleep", seconds=0.5, headers={"X-Request-Id": "e3", "X-Scenarium-Deadline-Ms": "60"})),
        "e4": (None, 404, served.client.post("/scenarios/none/predict", json={}, headers={"X-Request-Id": "e4"})),
        "e5": ("unit", 401, served.ask("unit", headers={"X-Request-Id": "e5", "Authorization": ""})),
        "e6": (None, 200, served.client.get("/scenarios", headers={"X-Request-Id": "e6"})),
        "e7": ("unit", 202, served.client.post("/scenarios/unit/jobs", json={"text": "j"}, headers={"X-Request-Id": "e7"})),
        "e8": ("unit", 200, served.client.post("/scenarios/unit/stream", json={"text": "s"}, headers={"X-Request-Id": "e8"})),
        "e9": ("unit", 200, served.client.post("/scenarios/unit/predict/batch", json=[{"text": "s"}] * 3, headers={"X-Request-Id": "e9"})),
    }
    for ident, (scenario, status, answer) in wanted.items():
        assert answer.status_code == status
        line = served.wait_event("request", request_id=ident)
        assert (line["scenario"], line["status"]) == (scenario, status), ident
        assert [each["request_id"] for each in served.events if each["event"] == "request"].count(ident) == 1
    own = served.ask("unit").headers["x-request-id"]
    served.wait_event("request", request_id=own)


def test_a_client_that_leaves_has_a_line_without_a_status(served) -> None:
    import httpx

    with pytest.raises(httpx.ReadTimeout):
        served.client.post("/scenarios/unit/predict", json={"text": "x", "do": "sleep", "seconds": 1}, headers={"X-Request-Id": "gone"}, timeout=0.2)
    assert served.wait_event("request", request_id="gone")["status"] is None


def test_what_a_client_chose_is_masked_by_the_extensions(served) -> None:
    masked = pytest.importorskip("scenarium_mask_personal_data")
    assert masked.mask_text("13812345678") == "[phone]"
    served.ask("unit", headers={"X-Request-Id": "13812345678"})
    served.wait_event("request", request_id="[phone]")
    served.client.get("/scenarios/wang@example.com")
    line = served.wait_event("request", path="/scenarios/[email]")
    assert (line["scenario"], line["status"]) == (None, 404)
    text = str([event for event in served.events if event["event"] == "request"])
    assert "13812345678" not in text
    assert "wang@example.com" not in text


def test_who_is_over_the_limit_has_a_line_too(lab) -> None:
    lab.publish("unit")
    key, text = KeyFile(lab.folder / "keys.sqlite").create(rate=Rate(1, 60))
    gateway = lab.start({"unit": "unit"}, "gateway.access_log=true")
    headers = {"Authorization": f"Bearer {text}"}
    lab.until(lambda: gateway.client.get("/scenarios/unit/ready", headers=headers).status_code == 200)
    assert [gateway.ask("unit", headers={**headers, "X-Request-Id": f"r{number}"}).status_code for number in (1, 2)] == [200, 429]
    line = gateway.wait_event("request", request_id="r2")
    assert (line["status"], line["key"]) == (429, key.id)


def test_a_share_of_the_requests(lab) -> None:
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"}, "gateway.access_log=0.3")
    gateway.ready("unit")
    for number in range(200):
        assert gateway.client.get("/healthz", headers={"X-Request-Id": f"s{number}"}).status_code == 200
    gateway.stop()
    lines = [event for event in gateway.events if event["event"] == "request" and str(event["request_id"]).startswith("s")]
    assert 25 < len(lines) < 110  # 60 expected; five standard deviations are 32


def test_nothing_is_written_where_nobody_asked(lab) -> None:
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    gateway.ask("unit")
    gateway.stop()
    assert not [event for event in gateway.events if event["event"] == "request"]


def test_what_an_extension_cannot_mask_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    from scenarium.core import hookimpl

    class Broken:
        @hookimpl(wrapper=True)
        def log_entry(self):
            yield
            raise ValueError("no mask today")

    class Registry:
        extensions = {"broken": Broken()}

    log = AccessLog(1.0, Registry())  # type: ignore[arg-type]
    assert log._masked("unit", {"request_id": "13812345678", "path": "/x"}) == {}
    assert "mask_failed" in capsys.readouterr().err
