"""The Python client against a real gateway; and what it sends again, against a server that counts and misbehaves as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import itertools
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy
import pytest
from PIL import Image
from pydantic import BaseModel

from scenarium.client import AsyncClient, Client, DeadlineExceeded, Item, Retry, ScenariumAPIError, ScenariumConnectionError
from scenarium.client.answers import Events
from scenarium.client.payloads import payload
from scenarium.gateway.keys import KeyFile


@pytest.fixture(scope="module")
def server(shared_lab):
    shared_lab.publish("unit")
    shared_lab.publish("picture")
    found = shared_lab.start({"unit": "unit", "picture": "picture"}, "gateway.access_log=1")
    found.ready("unit", "picture")
    return found


@pytest.fixture(scope="module")
def client(server):
    with Client(server.url) as found:
        yield found


class Said(BaseModel):
    text: str
    pid: int


# ── predictions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_both_clients_have_the_same_calls():
    def calls(cls):
        return {name: list(inspect.signature(each).parameters) for name, each in vars(cls).items() if not name.startswith("_") and name != "url"}

    waits, awaited = calls(Client), calls(AsyncClient)
    assert {name: awaited[name] for name in waits} == waits


def test_scenarios(client):
    assert [each.name for each in client.scenarios()] == ["picture", "unit"]
    unit = client.scenario("unit")
    assert (unit.pure, unit.streams, unit.version, unit.state, unit.sample) == (True, True, 1, "ready", {"text": "你好"})
    assert unit.request_schema["properties"]["text"] == {"title": "Text", "type": "string"}
    assert "pid" in unit.response_schema["required"]


def test_predict(client, server):
    answer = client.predict("unit", {"text": "你好"}, request_id="mine-1", headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
    assert (answer["text"], answer.version, answer.request_id, answer.cached) == ("你好", 1, "mine-1", False)
    assert server.wait_event("request", request_id="mine-1")["trace_id"] == "a" * 32
    typed = client.predict("unit", Said.model_construct(_fields_set={"text"}, text="typed"), into=Said)
    assert (type(typed), typed.text) == (Said, "typed")


def test_an_error_tells_code_field_hint_and_request(client):
    with pytest.raises(ScenariumAPIError) as caught:
        client.predict("unit", {"text": 5}, language="zh", request_id="mine-2")
    error = caught.value
    assert (error.code, error.status, error.field, error.request_id) == ("SCN-4001", 422, "text", "mine-2")
    assert "字段" in error.title
    assert error.hint in str(error)
    with pytest.raises(ScenariumAPIError, match="SCN-1001") as caught:
        client.predict("none such?x", {})
    assert caught.value.status == 404
    with pytest.raises(ScenariumAPIError, match="SCN-1001"):
        client.scenario("nothing")


@pytest.mark.alone
def test_the_deadline_reaches_the_gateway(client):
    began = time.monotonic()
    with pytest.raises(ScenariumAPIError) as caught:
        client.predict("unit", {"text": "x", "do": "sleep", "seconds": 2}, deadline=0.2)
    assert (caught.value.code, time.monotonic() - began < 1) == ("SCN-4007", True)


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_file_in_every_form(client, tmp_path):
    content = png()
    path = tmp_path / "red.png"
    path.write_bytes(content)
    with path.open("rb") as opened:
        forms = [content, bytearray(content), memoryview(content), path, opened, Image.open(io.BytesIO(content))]
        assert {client.predict("picture", form)["size"] for form in forms[:-1]} == {len(content)}
        assert client.predict("picture", forms[-1])["size"] > 8
    assert client.predict("picture", {"image": path, "top": 3}) == {"size": len(content), "top": 3}
    assert payload({"image": content, "top": 3}).content_type.startswith("multipart/form-data; boundary=")
    assert client.predict("picture", {"image": content, "top": None} | {"top": 2}) == {"size": len(content), "top": 2}
    with pytest.raises(TypeError, match="not str"):
        client.predict("picture", "red.png")


def test_what_json_does_not_know_by_itself():
    nested = {"rows": [{"image": b"\xff\xfe", "point": numpy.float32(0.5)}], "series": numpy.arange(3), "said": Said(text="x", pid=1), "none": None}
    content, kind = payload(nested)
    assert kind == "application/json"
    assert json.loads(content) == {"rows": [{"image": "//4=", "point": 0.5}], "series": [0, 1, 2], "said": {"text": "x", "pid": 1}, "none": None}
    with pytest.raises(TypeError, match="object cannot be written"):
        payload({"x": object()})


# ── batches ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_answers_in_order_and_an_element_has_its_own_error(client):
    given = [{"text": f"第{n}"} if n != 3 else {"text": 3} for n in range(10)]
    found = list(client.predict_batch("unit", given, chunk=4, into=Said))
    assert [item.index for item in found] == list(range(10))
    assert [item.answer.text for item in found if not item.error] == [f"第{n}" for n in range(10) if n != 3]
    assert (found[3].error.code, found[3].error.field) == ("SCN-4001", "text")
    with pytest.raises(ScenariumAPIError, match="SCN-4001"):
        found[3].value()


def test_a_batch_without_end_is_taken_as_it_is_needed(client):
    taken = itertools.count()
    answers = client.predict_batch("unit", ({"text": str(next(taken))} for _ in itertools.count()), chunk=8)
    assert [item.value()["text"] for item in itertools.islice(answers, 20)] == [str(n) for n in range(20)]
    answers.close()
    assert next(taken) == 24
    assert list(client.predict_batch("unit", [])) == []


# ── streams ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stream(client):
    parts = list(client.stream("unit", {"text": "a\u2028b", "n": 3}))
    assert [part["part"] for part in parts] == [0, 1, 2]
    assert {(part["text"], part.version) for part in parts} == {("a\u2028b", 1)}


def test_a_stream_that_fails_in_the_middle_is_an_error_after_its_parts(client):
    parts = client.stream("unit", {"text": "x", "do": "raise", "n": 3})
    assert next(parts)["part"] == 0
    with pytest.raises(ScenariumAPIError) as caught:
        next(parts)
    assert caught.value.status == 500
    with pytest.raises(ScenariumAPIError, match="SCN-4001"):
        next(client.stream("unit", {"text": 5}))
    with pytest.raises(ScenariumAPIError, match="SCN-4005"):
        next(client.stream("picture", b"\x89PNG"))


def test_leaving_a_stream_ends_its_work(client, server, lab, tmp_path):
    trail = tmp_path / "trail"
    for _ in client.stream("unit", {"text": "x", "n": 1000, "seconds": 0.02, "trail": str(trail)}):
        break
    lab.until(lambda: trail.exists() and trail.read_text() == "closed\n")


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_events_however_they_are_cut(size):
    told = 'data: {"a": "x\u2028y\x85"}\r\n\r\n: comment\n\nevent: error\ndata: 1\ndata: 2\n\nevent: end\ndata: {}\n\ndata: cut'.encode()
    events = Events()
    found = [event for at in range(0, len(told), size) for event in events.feed(told[at : at + size])]
    assert found == [("message", '{"a": "x\u2028y\x85"}'.encode()), ("error", b"1\n2"), ("end", b"{}")]


# ── jobs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job(client):
    job = client.submit("unit", {"text": "later", "do": "sleep", "seconds": 0.2}, idempotency_key="once")
    assert client.submit("unit", {"text": "later", "do": "sleep", "seconds": 0.2}, idempotency_key="once").id == job.id
    with pytest.raises(ScenariumAPIError, match="SCN-4122"):
        job.result()
    with pytest.raises(DeadlineExceeded):
        job.wait(timeout=0.01)
    seen = []
    assert job.wait(20, told=lambda status: seen.append(status.state)).state == "done"
    assert seen[-1] == "done"
    assert job.result(into=Said).text == "later"
    assert client.job(job.id).status().ended


def test_jobs_of_batches_and_streams(client):
    batch = client.submit_batch("unit", [{"text": "a"}, {"text": 5}])
    stream = client.submit("unit", {"text": "s", "n": 2}, stream=True)
    status = batch.wait(20)
    assert (status.mode, status.done, status.total) == ("batch", 2, 2)
    good, bad = batch.result()
    assert (good.answer["text"], bad.index, bad.error.code) == ("a", 1, "SCN-4001")
    stream.wait(20)
    assert [part["part"] for part in stream.result()] == [0, 1]


def test_a_job_that_fails_or_is_cancelled(client):
    failed = client.submit("unit", {"text": 5})
    assert failed.wait(20).error.code == "SCN-4001"
    with pytest.raises(ScenariumAPIError, match="SCN-4001"):
        failed.result()
    cancelled = client.submit("unit", {"text": "x", "do": "sleep", "seconds": 0.5})
    assert cancelled.cancel().state == "cancelled"
    with pytest.raises(ScenariumAPIError, match="SCN-4123"):
        cancelled.result()


# ── asyncio ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_asynchronous_client(server):
    async def main():
        async with AsyncClient(server.url) as client:
            assert len(await client.scenarios()) == 2
            assert (await client.scenario("unit")).pure
            answers = await asyncio.gather(*(client.predict("unit", {"text": str(n)}, into=Said) for n in range(20)))
            assert [answer.text for answer in answers] == [str(n) for n in range(20)]

            async def given():
                for n in range(10):
                    yield {"text": str(n)}

            items = [item async for item in client.predict_batch("unit", given(), chunk=3)]
            assert [item.value()["text"] for item in items] == [str(n) for n in range(10)]
            assert [item.index async for item in client.predict_batch("unit", [{"text": "a"}])] == [0]
            parts = [part["part"] async for part in client.stream("unit", {"text": "x"})]
            assert parts == [0, 1, 2]
            async with contextlib.aclosing(client.stream("unit", {"text": "x", "n": 1000, "seconds": 0.01})) as endless:
                assert (await anext(endless))["part"] == 0
            job = await client.submit("unit", {"text": "later"})
            await job.wait(20)
            assert (await job.result())["text"] == "later"
            assert (await (await client.job(job.id)).status()).state == "done"
            batch = await client.submit_batch("unit", [{"text": "a"}])
            assert (await batch.cancel()).id == batch.id
            with pytest.raises(ScenariumAPIError, match="SCN-4001"):
                await client.predict("unit", {"text": 5})

    asyncio.run(main())


def test_keys(lab, monkeypatch):
    lab.publish("unit")
    server = lab.start({"unit": "unit"})
    _, token = KeyFile(lab.folder / "keys.sqlite").create(scenarios=frozenset(("unit",)))
    lab.until(lambda: server.client.get("/scenarios").status_code == 401)
    with Client(server.url) as client, pytest.raises(ScenariumAPIError) as caught:
        client.predict("unit", {"text": "x"})
    assert (caught.value.status, caught.value.code) == (401, "SCN-4101")
    monkeypatch.setenv("SCENARIUM_API_KEY", token)
    monkeypatch.setenv("SCENARIUM_URL", f"{server.url}/")
    with Client() as client:
        assert client.predict("unit", {"text": "x"})["text"] == "x"
        job = client.submit("unit", {"text": "mine"})
        assert job.wait(20).state == "done"


# ── again ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Moody(ThreadingHTTPServer):
    """Answers as its list says: a status, a status with a code, a number of seconds to sleep, or ``cut``; then with 200."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), MoodyHandler)
        self.plan: list = []
        self.pure = True
        self.seen: list = []
        self.after = "0"


class MoodyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.say(200, {"name": "s", "state": "ready", "pure": self.server.pure})

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.server.seen.append((self.path, self.headers["x-scenarium-deadline-ms"], self.headers["idempotency-key"]))
        step = self.server.plan.pop(0) if self.server.plan else 200
        if step == "cut":
            self.close_connection = True
        elif isinstance(step, float):
            time.sleep(step)
            self.close_connection = True
        elif step == "cut stream":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'data: {"part": 0}\n\n')
            self.close_connection = True
        elif step == 200:
            told = {"id": "j", "scenario": "s", "state": "done", "mode": "one"}
            self.say(200, told if self.path.endswith("/jobs") else {"answer": 1})
        else:
            status, code = step if isinstance(step, tuple) else (step, None)
            self.say(status, {"type": f"urn:scenarium:error:{code}", "title": "no", "code": code} if code else None)

    def say(self, status, value):
        content = b"<html>" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        if status in (429, 503):
            self.send_header("retry-after", self.server.after)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def moody():
    server = Moody()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def impatient(moody):
    with Client(f"http://127.0.0.1:{moody.server_port}", retry=Retry(base=0.01)) as found:
        yield found


@pytest.mark.parametrize("step", [429, 502, (503, "SCN-4006"), 503, (504, "SCN-4007"), "cut"])
def test_a_pure_scenario_is_asked_again(moody, impatient, step):
    moody.plan = [step, step, step]
    assert impatient.predict("s", {}) == {"answer": 1}
    moody.plan, moody.seen = [step] * 4, []
    with pytest.raises((ScenariumAPIError, ScenariumConnectionError)):
        impatient.predict("s", {})
    assert len(moody.seen) == 4


@pytest.mark.parametrize("step", [429, (503, "SCN-4006"), (503, "SCN-4111")])
def test_what_was_never_run_is_sent_again_whatever_the_scenario_is(moody, impatient, step):
    moody.pure, moody.plan = False, [step]
    assert impatient.predict("s", {}) == {"answer": 1}


@pytest.mark.parametrize("step", [502, (503, "SCN-4008"), (503, "SCN-4013"), 503, (504, "SCN-4007"), "cut"])
def test_what_may_have_changed_something_is_not_sent_again(moody, impatient, step):
    moody.pure, moody.plan = False, [step]
    with pytest.raises((ScenariumAPIError, ScenariumConnectionError)):
        impatient.predict("s", {})
    assert len(moody.seen) == 1


@pytest.mark.parametrize("step", [400, 401, 404, 413, 422, 500, (503, "SCN-4004")])
def test_what_time_does_not_heal_is_not_sent_again(moody, impatient, step):
    moody.plan = [step]
    with pytest.raises(ScenariumAPIError):
        impatient.predict("s", {})
    assert len(moody.seen) == 1


def test_a_job_is_sent_again_under_its_own_key(moody, impatient):
    moody.pure, moody.plan = False, ["cut", 502]
    impatient.submit("s", {})
    assert len({key for _, _, key in moody.seen}) == 1
    assert len(moody.seen) == 3


@pytest.mark.alone
def test_retry_after_is_waited_for_and_never_beyond_the_deadline(moody, impatient):
    moody.plan, moody.after = [429], "1"
    began = time.monotonic()
    assert impatient.predict("s", {}, deadline=5) == {"answer": 1}
    assert 1 <= time.monotonic() - began < 2
    first, second = (int(told) for _, told, _ in moody.seen)
    assert first <= 5000
    assert second <= first - 1000
    moody.plan, moody.seen = [429], []
    began = time.monotonic()
    with pytest.raises(ScenariumAPIError) as caught:
        impatient.predict("s", {}, deadline=0.9)
    assert (caught.value.status, caught.value.retry_after) == (429, 1)
    moody.plan, moody.after = [429], "3600"
    with pytest.raises(ScenariumAPIError):
        impatient.predict("s", {}, deadline=None)
    assert time.monotonic() - began < 0.5


@pytest.mark.alone
def test_an_answer_that_does_not_come_ends_at_the_deadline(moody, impatient, monkeypatch):
    monkeypatch.setattr("scenarium.client.flows.SLACK_S", 0.1)
    moody.plan = [2.0]
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        impatient.predict("s", {}, deadline=0.2)
    assert time.monotonic() - began < 1


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", retry=Retry(attempts=3, base=0.01)) as client, pytest.raises(ScenariumConnectionError, match=str(port)):
        client.predict("s", {})


def test_a_stream_that_is_cut_off_is_an_error(moody, impatient):
    moody.plan = ["cut stream"]
    parts = impatient.stream("s", {})
    assert next(parts)["part"] == 0
    with pytest.raises(ScenariumConnectionError, match="before the stream ended"):
        next(parts)
    assert len(moody.seen) == 1


def test_the_pauses_grow_with_full_jitter():
    retry = Retry(base=0.1, cap=1.0)
    longest = [max(retry.pause(attempt, None) for _ in range(300)) for attempt in range(6)]
    assert [round(each, 1) for each in longest] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert min(retry.pause(5, None) for _ in range(300)) < 0.1
    assert all(2 <= retry.pause(0, 2.0) <= 2.1 for _ in range(50))


def test_items_are_typed():
    assert Item(0, "x", None).value() == "x"
