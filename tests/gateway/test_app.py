"""The routes, over one gateway that the tests of this file share."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest


@pytest.fixture(scope="module")
def gateway(shared_lab):
    for name in ("unit", "picture"):
        shared_lab.publish(name)
    shared_lab.publish("syntax", "unit")
    shared_lab.publish("hangs", "unit")
    shared_lab.publish("calm", "unit", settings={"model.concurrency": 4})
    syntax = shared_lab.folder / "syntax.py"
    syntax.write_text("def broken(:\n")
    found = shared_lab.start(
        {"unit": "unit", "picture": "picture", "syntax": str(syntax), "hangs": "hangs", "exits": "exits"},
        "scenarios.calm.plugin=unit",
        "scenarios.unit.serve.required=true",
        "scenarios.unit.serve.max_body_bytes=20000",
        "scenarios.unit.serve.log_payloads=true",
        "scenarios.wrong.plugin=unit",
        "scenarios.wrong.serve.queue_size=-3",
        "scenarios.missing.plugin=not_installed",
    )
    found.ready("unit", "picture", "calm")
    return found


def test_the_gateway_imports_neither_torch_nor_a_plugin():
    code = "import sys, scenarium.gateway.server; print([m for m in ('torch', 'numpy', 'onnxruntime') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_an_answer_carries_version_and_request_id(gateway):
    answer = gateway.ask("unit", "你好", headers={"X-Request-Id": "abc-1"})
    assert answer.status_code == 200
    assert answer.json()["text"] == "你好"
    assert answer.headers["X-Scenarium-Version"] == "1"
    assert answer.headers["X-Request-Id"] == "abc-1"
    ids = {gateway.ask("unit").headers["X-Request-Id"] for _ in range(3)}
    assert len(ids) == 3
    injected = gateway.ask("unit", headers={"X-Request-Id": "bad id\x01"[:6] + "<script>"}).headers["X-Request-Id"]
    assert "script" not in injected


def test_plain_curl_data_is_understood(gateway):
    answer = httpx.post(f"{gateway.url}/scenarios/unit/predict", content=b'{"text": "x"}', headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"", 400, "SCN-4002", None),
        (b"{", 400, "SCN-4002", None),
        (b"\xff\xfe", 400, "SCN-4002", None),
        (b"null", 422, "SCN-4001", "body"),
        (b"[1]", 422, "SCN-4001", "body"),
        (b"{}", 422, "SCN-4001", "text"),
        (b'{"text": 3}', 422, "SCN-4001", "text"),
        (b'{"text": "x", "tset": 1}', 422, "SCN-4001", "tset"),
        (b'{"text": "x", "seconds": "NaN"}', 422, "SCN-4001", "seconds"),
        (b'{"text": "x", "seconds": 1e999}', 422, "SCN-4001", "seconds"),
        (b'{"text": "\\ud800"}', 400, "SCN-4002", None),
        (b"[" * 5000, 400, "SCN-4002", None),
        (b'{"text": "' + b"x" * 30000 + b'"}', 413, "SCN-4012", None),
    ],
)
def test_bad_input_is_the_clients_error(gateway, body, status, code, field):
    answer = httpx.post(f"{gateway.url}/scenarios/unit/predict", content=body)
    assert answer.status_code == status, answer.text
    if code:
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["code"] == code
        assert answer.json().get("field") == field
        assert answer.json()["type"] == f"urn:scenarium:error:{code}"
        assert answer.json()["hint"]


def test_errors_come_in_the_clients_language(gateway):
    for headers, expected in (({"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.5"}, "缺失"), ({"Accept-Language": "en"}, "is missing"), ({}, "is missing")):
        answer = gateway.client.post("/scenarios/unit/predict", json={}, headers=headers)
        assert expected in answer.json()["title"]
    assert "不存在" in gateway.client.get("/nowhere", headers={"Accept-Language": "zh"}).json()["title"]


def test_what_is_not_there(gateway):
    for method, path, status, code in (
        ("POST", "/scenarios/uint/predict", 404, "SCN-1001"),
        ("GET", "/scenarios/uint", 404, "SCN-1001"),
        ("GET", "/nowhere", 404, "SCN-4015"),
        ("GET", "/scenarios/unit/predict", 405, "SCN-4016"),
        ("DELETE", "/scenarios", 405, "SCN-4016"),
        ("POST", "/scenarios/picture/stream", 404, "SCN-4005"),
        ("GET", "/docs/../app.py", 404, "SCN-4015"),
    ):
        answer = gateway.client.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (status, code), (path, answer.text)
    assert "unit" in gateway.client.get("/scenarios/uint").json()["hint"]


def test_three_forms_of_bytes(gateway):
    image = b"\x89PNG" + bytes(range(200))
    forms = [
        {"content": image},
        {"content": image, "headers": {"Content-Type": "application/octet-stream"}},
        {"files": {"file": ("x.png", image)}, "data": {"top": "2"}},
        {"json": {"image": base64.b64encode(image).decode(), "top": 2}},
    ]
    answers = [gateway.client.post("/scenarios/picture/predict", **form) for form in forms]
    assert [a.json() for a in answers] == [{"size": 204, "top": top} for top in (1, 1, 2, 2)]
    assert gateway.client.post("/scenarios/picture/predict", content=b"").status_code in (400, 422)


def test_broken_plugins_stand_beside_good_ones(gateway):
    rows = {row["name"]: row for row in gateway.client.get("/scenarios").json()["scenarios"]}
    states = {name: row["state"] for name, row in rows.items()}
    assert states | {"syntax": "failed"} == states
    assert states["unit"] == states["picture"] == states["calm"] == "ready"
    assert states["hangs"] == "starting"
    assert states["exits"] == "untrained"
    assert states["wrong"] == states["missing"] == "failed"
    assert rows["syntax"]["error"]["code"] == "SCN-4010"
    assert "syntax.py" in rows["syntax"]["error"]["title"]
    assert rows["wrong"]["error"]["code"] == "SCN-1004"
    assert rows["missing"]["error"]["code"] == "SCN-1006"
    assert gateway.ask("unit").status_code == 200


def test_an_untrained_scenario_answers_with_the_train_command(gateway):
    for path in ("predict", "predict/batch", "stream"):
        answer = gateway.client.post(f"/scenarios/exits/{path}", json={})
        assert answer.status_code == 503
        assert answer.json()["code"] == "SCN-4004"
        assert "scenarium train exits" in answer.json()["hint"]


def test_the_description_of_a_scenario(gateway):
    found = gateway.client.get("/scenarios/unit").json()
    assert found["state"] == "ready"
    assert found["version"] == 1
    assert found["data_origin"] == "generated"
    assert found["metrics"] == {"accuracy": 0.875}
    assert found["sample"] == {"text": "你好"}
    assert found["schema"]["request"]["properties"]["text"]["type"] == "string"
    assert found["card"] == "# unit\n"
    assert gateway.client.get("/scenarios/unit", headers={"Accept-Language": "zh"}).json()["card"] == "# unit（中文）\n"


def test_health_and_readiness(gateway):
    assert gateway.client.get("/healthz").status_code == 200
    assert gateway.client.get("/readyz").status_code == 200  # only what is required counts, and `hangs` is not
    assert gateway.client.get("/scenarios/unit/ready").json() == {"status": "ready", "version": 1}
    assert gateway.client.get("/scenarios/exits/ready").status_code == 503


@pytest.mark.alone
def test_a_deadline_in_the_header(gateway):
    began = time.monotonic()
    answer = gateway.ask("calm", do="sleep", seconds=0.6, headers={"X-Scenarium-Deadline-Ms": "100"})
    assert answer.status_code == 504
    assert answer.json()["code"] == "SCN-4007"
    assert time.monotonic() - began < 0.4
    for value in ("0", "-1", "x", "nan", "inf"):
        answer = gateway.ask("unit", headers={"X-Scenarium-Deadline-Ms": value})
        assert (answer.status_code, answer.json()["code"]) == (400, "SCN-4018")


def test_priority_in_the_header(gateway, shared_lab, tmp_path):
    trail = tmp_path / "trail"
    with ThreadPoolExecutor(4) as pool:
        pool.submit(gateway.ask, "unit", "blocker", do="sleep", seconds=0.5, trail=str(trail))
        shared_lab.until(trail.exists)
        for priority in ("low", "normal", "high"):
            pool.submit(gateway.ask, "unit", priority, trail=str(trail), headers={"X-Scenarium-Priority": priority})
            time.sleep(0.05)
    assert trail.read_text().split() == ["blocker", "high", "normal", "low"]
    answer = gateway.ask("unit", headers={"X-Scenarium-Priority": "urgent"})
    assert answer.status_code == 400
    assert answer.json()["code"] == "SCN-4018"


def test_requests_that_wait_run_together(gateway):
    with ThreadPoolExecutor(9) as pool:
        pool.submit(gateway.ask, "unit", do="sleep", seconds=0.3)
        time.sleep(0.1)
        sizes = [f.result().json()["batch"] for f in [pool.submit(gateway.ask, "unit", f"{n}") for n in range(8)]]
    assert sizes == [8] * 8


@pytest.mark.alone
def test_open_items_run_at_once(gateway):
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        sizes = [f.result().json()["batch"] for f in [pool.submit(gateway.ask, "calm", do="sleep", seconds=0.4) for _ in range(4)]]
    assert sizes == [1] * 4
    assert time.monotonic() - began < 1.2


def events_of(answer):
    found = []
    for block in answer.text.strip().split("\n\n"):
        kind, data = "message", None
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            kind, data = (value, data) if name == "event" else (kind, json.loads(value))
        found.append((kind, data))
    return found


def test_a_stream(gateway):
    answer = gateway.client.post("/scenarios/calm/stream", json={"text": "x", "n": 3})
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["X-Scenarium-Version"] == "1"
    assert events_of(answer) == [*(("message", {"part": n, "text": "x"}) for n in range(3)), ("end", {})]


def test_errors_of_a_stream(gateway):
    early = gateway.client.post("/scenarios/calm/stream", json={"n": 3})
    assert (early.status_code, early.json()["code"]) == (422, "SCN-4001")
    late = events_of(gateway.client.post("/scenarios/calm/stream", json={"text": "x", "do": "raise"}))
    assert [kind for kind, _ in late] == ["message", "error"]
    assert late[1][1]["code"] == "SCN-4003"
    slow = events_of(gateway.client.post("/scenarios/calm/stream", json={"text": "x", "seconds": 0.2, "n": 50}, headers={"X-Scenarium-Deadline-Ms": "500"}))
    assert slow[-1][0] == "error"
    assert slow[-1][1]["code"] == "SCN-4007"


@pytest.mark.alone
@pytest.mark.parametrize("name", ["calm", "unit"])
def test_parts_come_when_they_are_made_and_a_client_that_leaves_stops_the_generator(gateway, tmp_path, name):
    trail = tmp_path / "trail"
    body = {"text": "x", "seconds": 0.1, "n": 1000, "trail": str(trail)}
    began = time.monotonic()
    with httpx.stream("POST", f"{gateway.url}/scenarios/{name}/stream", json=body) as answer:
        next(answer.iter_lines())
        assert time.monotonic() - began < 0.5
        assert not trail.exists()
    end = time.monotonic() + 3
    while not trail.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert trail.read_text() == "closed\n"


def test_a_batch_as_array_and_as_lines(gateway):
    items = [{"text": f't{n} ]}},[{{ " \\ 你'} if n != 5 else {"txet": 1} for n in range(100)]
    array = gateway.client.post("/scenarios/unit/predict/batch", json=items)
    assert array.status_code == 200
    assert (array.headers["X-Scenarium-Items"], array.headers["X-Scenarium-Errors"]) == ("100", "1")
    found = array.json()
    assert [a.get("text") for a in found] == [item.get("text") for item in items]
    assert found[5]["code"] == "SCN-4001"
    lines = gateway.client.post("/scenarios/unit/predict/batch", content="\n".join(json.dumps(item) for item in items))
    assert lines.headers["Content-Type"] == "application/x-ndjson"
    assert [json.loads(line).get("text") for line in lines.text.splitlines()] == [item.get("text") for item in items]
    assert gateway.client.post("/scenarios/unit/predict/batch", json=[]).json() == []
    for broken in (b"", b'[{"text": "x"}', b'[{"text": "x"},]', b"[,]", b"[1] 2"):
        answer = gateway.client.post("/scenarios/unit/predict/batch", content=broken)
        assert (answer.status_code, answer.json()["code"]) == (400, "SCN-4002"), broken


def test_a_long_batch_leaves_room_for_others(gateway):
    lines = b"\n".join(b'{"text": "%d"}' % n for n in range(5000))
    with ThreadPoolExecutor(2) as pool:
        batch = pool.submit(gateway.client.post, "/scenarios/unit/predict/batch", content=lines)
        worst = 0.0
        while not batch.done():
            began = time.monotonic()
            assert gateway.ask("unit", "single").status_code == 200
            worst = max(worst, time.monotonic() - began)
    answers = batch.result().text.splitlines()
    assert [json.loads(a)["text"] for a in answers] == [str(n) for n in range(5000)]
    assert worst < 1.0


def test_random_urls_add_no_series(gateway):
    def series():
        return {line.rpartition(" ")[0] for line in gateway.client.get("/metrics").text.splitlines() if not line.startswith("#")}

    before = series()
    with httpx.Client(base_url=gateway.url) as client:
        for n in range(500):
            assert client.post(f"/scenarios/random{n}/predict", content=b"{}").status_code == 404
            client.get(f"/random/{n}")
    assert series() == before
    text = gateway.client.get("/metrics").text
    for step in ("queue", "preprocess", "forward", "postprocess"):
        assert float(re.search(rf'scenarium_step_seconds_count{{scenario="unit",step="{step}"}} (\S+)', text)[1]) > 0
    assert 'scenarium_state{scenario="unit",state="ready"} 1.0' in text
    assert 'scenarium_version{scenario="unit"} 1.0' in text


def test_logs_are_json_with_the_request_id_and_payloads(gateway):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    gateway.ask("unit", "logged", do="print", headers={"X-Request-Id": "log-1", "traceparent": trace})
    payload = gateway.wait_event("payload", request_id="log-1")
    assert payload["request"]["text"] == "logged"
    assert payload["answer"]["text"] == "logged"
    assert payload["traceparent"] == trace, "it went to the worker and came back"
    for stream in ("stdout", "stderr"):
        gateway.wait_event("worker_output", scenario="unit", line=f"to {stream}: logged")
    gateway.ask("unit", "x", do="raise", headers={"X-Request-Id": "log-2"})
    assert gateway.wait_event("request_failed", request_id="log-2")["status"] == 500


def test_the_installed_extension_masks_what_is_logged_and_not_what_is_answered(gateway):
    answer = gateway.ask("unit", "call 13812345678", headers={"X-Request-Id": "masked"})
    assert answer.json()["text"] == "call 13812345678"
    payload = gateway.wait_event("payload", request_id="masked")
    assert payload["request"]["text"] == payload["answer"]["text"] == "call [phone]"
    assert not [event for event in gateway.events if "13812345678" in json.dumps(event)]


def test_openapi_is_typed_for_each_scenario(gateway):
    document = gateway.client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    post = document["paths"]["/scenarios/unit/predict"]["post"]
    body = post["requestBody"]["content"]["application/json"]
    assert body["example"] == {"text": "你好"}
    request = document["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]
    assert request["required"] == ["text"]
    answer = post["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(document["components"]["schemas"][answer["$ref"].rpartition("/")[2]]["properties"]) == {"text", "answer", "batch", "pid", "noise"}
    assert set(document["paths"]["/scenarios/picture/predict"]["post"]["requestBody"]["content"]) == {
        "application/json",
        "application/octet-stream",
        "multipart/form-data",
    }
    assert "/scenarios/picture/stream" not in document["paths"]
    assert "scenarium train exits" in document["paths"]["/scenarios/exits/predict"]["post"]["description"]
    refs = set(re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(document)))
    assert refs <= set(document["components"]["schemas"])
    chinese = gateway.client.get("/openapi.json", headers={"Accept-Language": "zh"}).json()
    assert chinese["paths"]["/scenarios/unit/predict"]["post"]["summary"] == "单次预测"


def test_the_docs_page_needs_no_other_host(gateway):
    page = gateway.client.get("/docs").text
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert links
    assert not [link for link in links if "//" in link]
    for link in links:
        assert gateway.client.get(f"/{link}").status_code == 200
