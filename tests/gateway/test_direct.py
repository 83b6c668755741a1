"""Predictions that a connection answers itself: the same answers as by the ASGI way, in order, and none without its client."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from types import SimpleNamespace

import pytest
import uvicorn
from uvicorn.server import ServerState

from scenarium.core.config import GatewayConfig, ServeConfig
from scenarium.core.errors import ScenariumError
from scenarium.gateway.admission import Admission
from scenarium.gateway.connections import Bounds
from scenarium.gateway.direct import LARGEST, Direct
from scenarium.gateway.kserve.inference import Inference
from scenarium.gateway.requests import Outcome
from tests.gateway.job_calls import lines

ASK = b'{"text": "x"}'
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}
BODY = {"type": "http.response.body", "body": b"asgi"}


def request(*more: str, body: bytes = ASK, line: str = "POST /scenarios/unit/predict HTTP/1.1", length: bool = True) -> bytes:
    head = [line, "Host: localhost", *more, *([f"Content-Length: {len(body)}"] if length else []), "", ""]
    return "\r\n".join(head).encode() + body


# ── the protocol, with a queue that the test answers from ─────────────────────────────────────────────────────────────


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self):
        super().__init__({})
        self.written, self.closing, self.reading = b"", False, True

    def write(self, data):
        self.written += data

    def close(self):
        self.closing = True

    abort = close

    def is_closing(self):
        return self.closing

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True


class Queue:
    """Stands for a service."""

    name = "unit"
    fault = queued = route_key = None

    def __init__(self):
        self.config = ServeConfig(max_body_bytes=1000)
        self.asked, self.left = [], []
        self.stats = SimpleNamespace(answered=lambda *_: None, failed=lambda *_: None)

    def submit(self, asked):
        self.asked.append(asked)

    def cancel(self, asked):
        self.left.append(asked.rid)
        asked.resolve(Outcome(0, b"", failure="cancelled"))

    def answer(self, body=b'{"text":"x"}'):
        self.asked.pop(0).resolve(Outcome(200, body, 7))


@pytest.fixture
def wired(tmp_path):
    """A connection, its queue, and a function that makes another one; whatever is not taken is answered ``asgi``."""

    async def app(scope, receive, send):
        await receive()
        await send(START)
        await send(BODY)

    loop = asyncio.new_event_loop()
    queue = Queue()
    config = GatewayConfig(keys=None)
    gateway = SimpleNamespace(audit=None, access_log=None, tracing=None, config=config, services={"unit": queue})
    gateway.admission = Admission(config, SimpleNamespace())
    served = SimpleNamespace(state=SimpleNamespace(gateway=gateway), v2=SimpleNamespace(inference=Inference()))

    def connect():
        transport = Transport()
        options = uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
        options.load()
        connection = Bounds(served).connection(config=options, server_state=ServerState(), app_state={}, _loop=loop)
        connection.connection_made(transport)
        return connection, transport

    def run(connection, data):
        """Let the connection read, and the tasks that it began come to their end."""

        async def read():
            connection.data_received(data)
            for _ in range(5):
                await asyncio.sleep(0)

        loop.run_until_complete(read())

    yield SimpleNamespace(queue=queue, gateway=gateway, connect=connect, run=run)
    loop.close()


TAKEN = {
    "whole": [request()],
    "in pieces": [request()[:20], request()[20:-4], request()[-4:]],
    "with a query of headers": [request("X-Request-Id: a", "Accept-Language: zh", "X-Scenarium-Priority: high")],
    "to close": [request("Connection: close")],
}
LEFT = {
    "another route": [request(line="POST /scenarios/unit/stream HTTP/1.1")],
    "another method": [request(line="PUT /scenarios/unit/predict HTTP/1.1")],
    "a name that is written in another way": [request(line="POST /scenarios/%75nit/predict HTTP/1.1")],
    "a query": [request(line="POST /scenarios/unit/predict?a=1 HTTP/1.1")],
    "a scenario that there is not": [request(line="POST /scenarios/other/predict HTTP/1.1")],
    "an older protocol": [request(line="POST /scenarios/unit/predict HTTP/1.0")],
    "chunks": [request("Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n", length=False)],
    "no body": [request(body=b"")],
    "a large body": [request(body=b"x" * (LARGEST + 1))],
    "one that asks before it sends": [request("Expect: 100-continue")],
    "an upgrade": [request("Connection: upgrade", "Upgrade: h2c")],
}


@pytest.mark.parametrize("pieces", TAKEN.values(), ids=TAKEN)
def test_what_is_taken(wired, pieces):
    connection, transport = wired.connect()
    for piece in pieces:
        assert not wired.queue.asked
        wired.run(connection, piece)
    assert isinstance(connection.cycle, Direct)
    assert [asked.body for asked in wired.queue.asked] == [ASK]
    assert not transport.written
    wired.queue.answer()
    head, _, body = transport.written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"x-scenarium-version: 7" in head
    assert body == b'{"text":"x"}'
    assert transport.closing == (b"connection: close" in head) == (b"Connection: close" in b"".join(pieces))


@pytest.mark.parametrize("pieces", LEFT.values(), ids=LEFT)
def test_what_goes_the_asgi_way(wired, pieces):
    connection, transport = wired.connect()
    for piece in pieces:
        wired.run(connection, piece)
    assert not wired.queue.asked
    assert transport.written.endswith(b"asgi")


@pytest.mark.parametrize("watches", ["audit", "access_log"])
def test_nothing_is_taken_past_what_watches(wired, watches):
    setattr(wired.gateway, watches, object())
    connection, transport = wired.connect()
    wired.run(connection, request())
    assert transport.written.endswith(b"asgi")


@pytest.mark.parametrize("sampled", [True, False])
def test_only_a_span_that_is_not_sampled_is_no_asgi_call(wired, sampled):
    own = "00-" + "1" * 32 + "-" + "2" * 16 + ("-01" if sampled else "-00")
    span = SimpleNamespace(is_recording=lambda: sampled)

    def begin(scope, app):
        assert (scope["method"], scope["path"]) == ("POST", "/scenarios/unit/predict")
        scope["headers"] = [*scope["headers"], (b"traceparent", own.encode())]
        return span

    wired.gateway.tracing = SimpleNamespace(begin=begin)
    connection, transport = wired.connect()
    wired.run(connection, request())
    if sampled:
        assert transport.written.endswith(b"asgi")
        assert connection.scope["span"] is span  # the app goes on with it
    else:
        assert [asked.trace for asked in wired.queue.asked] == [own]


def test_answers_keep_the_order_of_their_requests(wired):
    connection, transport = wired.connect()
    wired.run(connection, request("X-Request-Id: one") + request("X-Request-Id: two") + request(line="POST /other HTTP/1.1"))
    assert len(wired.queue.asked) == 1  # the second waits: it came before the first was answered
    assert not transport.reading

    async def answer():
        wired.queue.answer()
        for _ in range(9):
            await asyncio.sleep(0)

    connection.loop.run_until_complete(answer())
    assert re.findall(rb"x-request-id: (\w+)|(asgi)", transport.written) == [(b"one", b""), (b"", b"asgi"), (b"", b"asgi")]
    assert transport.reading


def test_who_leaves_is_waited_for_by_nobody(wired):
    connection, transport = wired.connect()
    wired.run(connection, request())
    (asked,) = wired.queue.asked
    connection.connection_lost(ConnectionResetError())
    assert wired.queue.left == [asked.rid]
    assert not transport.written
    half, _ = wired.connect()
    wired.run(half, request()[:-4])
    half.connection_lost(None)
    assert len(wired.queue.asked) == 1  # it never was a request


def test_a_fault_of_ours_is_a_500_and_reaches_no_other(wired, capsys):
    def broken(asked):
        raise ZeroDivisionError("planted")

    wired.queue.submit = broken
    connection, transport = wired.connect()
    wired.run(connection, request("X-Request-Id: mine"))
    assert transport.written.startswith(b"HTTP/1.1 500 ")
    problem = json.loads(transport.written.partition(b"\r\n\r\n")[2])
    assert (problem["code"], "ZeroDivisionError: planted" in problem["title"]) == ("SCN-4019", True)
    assert json.loads(capsys.readouterr().err)["request_id"] == "mine"


def test_a_service_that_cannot_answer_says_why(wired):
    wired.queue.fault = ScenariumError("SCN-4004", name="unit", command="scenarium train unit")
    connection, transport = wired.connect()
    wired.run(connection, request())
    assert json.loads(transport.written.partition(b"\r\n\r\n")[2])["code"] == "SCN-4004"
    wired.queue.fault = None
    wired.run(connection, request(body=b"x" * 1001))
    assert transport.written.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 413 " in transport.written
    assert transport.closing


# ── two gateways: one answers directly, the other all by ASGI ─────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def both(shared_lab):
    shared_lab.publish("unit")
    found = [shared_lab.start({"unit": "unit"}), shared_lab.start({"unit": "unit"}, "gateway.access_log=1")]
    for gateway in found:
        gateway.ready("unit")
    return found


def said(gateway, data: bytes) -> bytes:
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    return answer


SAME = {
    "an answer": ([], ASK),
    "a body that is wrong": ([], b'{"text": 1}'),
    "a body that is no JSON, in Chinese": (["Accept-Language: zh"], b"nothing"),
    "a deadline that passes": (["X-Scenarium-Deadline-Ms: 50"], b'{"text": "x", "do": "sleep", "seconds": 0.2}'),
    "a deadline that is none": (["X-Scenarium-Deadline-Ms: soon"], ASK),
    "a priority that is none": (["X-Scenarium-Priority: first"], ASK),
    "a packed body": (["Content-Encoding: gzip"], ASK),
    "an item that raises": ([], b'{"text": "x", "do": "raise"}'),
}


@pytest.mark.parametrize(("headers", "body"), SAME.values(), ids=SAME)
def test_both_ways_give_the_same_answer(both, headers, body):
    data = request("Connection: close", "X-Request-Id: r", *headers, body=body)
    found = []
    for gateway in both:
        head, _, body = re.sub(rb'date: [^\r]+|length: [67]\d|"(?:pid|noise)":[-.\de]+', b"x", said(gateway, data)).partition(b"\r\n\r\n")
        status, *headers = head.split(b"\r\n")
        found.append((status, sorted(headers), body))
    direct, asgi = found
    assert direct == asgi
    assert direct[0].startswith(b"HTTP/1.1 ")


def test_a_client_that_leaves_is_never_run(both, tmp_path):
    gateway, trail = both[0], tmp_path / "trail"
    host, port = gateway.url.removeprefix("http://").split(":")
    asked = [{"text": "first", "do": "sleep", "seconds": 0.5, "trail": str(trail)}, {"text": "left", "trail": str(trail)}]
    connections = [socket.create_connection((host, int(port)), timeout=20) for _ in asked]
    for connection, each in zip(connections, asked, strict=True):
        connection.sendall(request(body=json.dumps(each).encode()))
        if each["text"] == "first":
            assert lines_until(trail, 1) == ["first"]
    connections[1].close()
    assert connections[0].recv(65_536).startswith(b"HTTP/1.1 200 ")
    assert gateway.ask("unit", "last", trail=str(trail)).status_code == 200
    assert lines(trail) == ["first", "last"]
    connections[0].close()


def lines_until(trail, count: int) -> list[str]:
    """The lines of a file once it has so many."""
    from tests.gateway.conftest import until

    return until(lambda: len(found := lines(trail)) >= count and found)


def refuses(host: str, port: int) -> bool:
    """Whether nobody listens any more."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return True
    return False


def test_a_body_that_is_under_way_is_answered_before_the_gateway_ends(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        data = request()
        connection.sendall(data[:-5])
        lab.until(lambda: 'scenarium_requests_open{scenario="unit"}' in gateway.client.get("/metrics").text)
        gateway.popen.send_signal(signal.SIGTERM)
        lab.until(lambda: refuses(host, int(port)))
        connection.sendall(data[-5:])
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer
    assert gateway.popen.wait(20) == 0
