"""What one client may cost: slow headers and bodies, large headers, silence, too many connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time

import pytest

from scenarium.gateway.connections import Joined


@pytest.fixture(scope="module")
def gateway(shared_lab):
    shared_lab.publish("unit")
    found = shared_lab.start(
        {"unit": "unit"},
        "gateway.body_timeout_s=1",
        "gateway.max_header_bytes=4096",
        "gateway.max_connections=40",
        "scenarios.unit.serve.max_body_bytes=4000000",
    )
    found.ready("unit")
    return found


def rejected(gateway, reason: str) -> float:
    return float(re.search(rf'scenarium_rejected_total{{reason="{reason}"}} (\S+)', gateway.client.get("/metrics").text)[1])


def connect(gateway) -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def drip(connection: socket.socket, data: bytes, pause: float) -> bytes:
    """Send byte after byte until the other side answers; everything that it says until it closes."""
    answer = b""
    connection.settimeout(pause)
    for n in range(len(data)):
        try:
            connection.sendall(data[n : n + 1])
            answer += connection.recv(65_536)
        except TimeoutError:
            continue
        except OSError:
            break
        break
    connection.settimeout(10)
    try:
        while piece := connection.recv(65_536):
            answer += piece
    except OSError:
        pass
    return answer


def head(*more: str) -> bytes:
    return "\r\n".join(["POST /scenarios/unit/predict HTTP/1.1", "Host: x", *more, "", ""]).encode()


def test_slow_headers_end_with_408(gateway):
    before = rejected(gateway, "slow")
    with connect(gateway) as connection:
        began = time.monotonic()
        answer = drip(connection, head(), 0.1)
        assert 1 <= time.monotonic() - began < 4
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "SCN-4109"
    assert rejected(gateway, "slow") == before + 1


def test_a_connection_that_says_nothing_is_closed(gateway):
    with connect(gateway) as silent, connect(gateway) as lines:
        lines.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert lines.recv(65_536).startswith(b"HTTP/1.1 200 ")
        time.sleep(0.2)  # for the rest of the answer
        lines.sendall(b"\r\n")  # no request, but it stops the keep-alive time
        assert drip(silent, b"", 0).startswith(b"HTTP/1.1 408 ")
        assert b"HTTP/1.1 408 " in drip(lines, b"", 0)


def test_a_slow_body_ends_with_408_in_the_clients_language(gateway):
    with connect(gateway) as connection:
        connection.sendall(head("Content-Length: 1000", "Accept-Language: zh", "X-Request-Id: slow-1"))
        answer = drip(connection, b'{"text": "' + b"x" * 500, 0.05)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"x-request-id: slow-1" in answer
    assert "请求发送过慢" in json.loads(answer.partition(b"\r\n\r\n")[2])["title"]
    assert gateway.ask("unit").status_code == 200
    assert 'scenarium_requests_open{scenario="unit"} 0.0' in gateway.client.get("/metrics").text


def rest(connection: socket.socket) -> bytes:
    """All that comes until the other side closes; a reset is an error."""
    answer = b""
    while piece := connection.recv(65_536):
        answer += piece
    return answer


def test_who_still_sends_gets_the_answer_and_no_reset(gateway):
    with connect(gateway) as large:
        large.sendall(head("Content-Length: 16000000"))
        assert large.recv(1, socket.MSG_PEEK)  # refused by its length; the client sends on
        large.sendall(b"x" * 16_000_000)
        answer = rest(large)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "SCN-4012"
    with connect(gateway) as slow:
        slow.sendall(head("Content-Length: 1000000") + b"x")
        assert slow.recv(1, socket.MSG_PEEK)
        slow.sendall(b"x" * 900_000)
        assert rest(slow).startswith(b"HTTP/1.1 408 ")


def test_who_sends_without_end_is_not_heard_for_long(gateway):
    for pause, most in ((0.0, 120_000_000), (0.05, 100_000)):
        with connect(gateway) as endless:
            endless.sendall(head("Content-Length: 1000000000"))
            began, sent = time.monotonic(), 0
            with contextlib.suppress(OSError):
                while sent < most:
                    sent += endless.send(b"x" * (100_000 if not pause else 100))
                    time.sleep(pause)
            assert sent < most
            assert time.monotonic() - began < 8


def test_a_large_body_may_take_longer(gateway):
    body = b'{"text": "' + b"x" * 200_000 + b'"}'
    with connect(gateway) as connection:
        connection.sendall(head(f"Content-Length: {len(body)}", "Connection: close"))
        for n in range(0, len(body), 20_000):  # over 2.5 s at 80 kB/s, where a whole body may take 1 s and 12 s for its size
            connection.sendall(body[n : n + 20_000])
            time.sleep(0.25)
        assert drip(connection, b"", 0).startswith(b"HTTP/1.1 200 ")


def test_headers_are_bounded(gateway):
    for headers in (f"X-Long: {'x' * 5000}", "\r\n".join(f"X-{n}: {'y' * 50}" for n in range(100))):
        with connect(gateway) as connection:
            connection.sendall(head(headers, "Content-Length: 0"))
            answer = drip(connection, b"", 0)
        assert answer.startswith(b"HTTP/1.1 431 "), answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "SCN-4110"
    with connect(gateway) as endless:
        endless.sendall(b"GET / HTTP/1.1\r\nX-Endless: ")
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 1_000_000:
                sent += endless.send(b"z" * 1000)
                time.sleep(0.001)
        assert sent < 1_000_000, "a header without end is not read to its end"
    body = b'{"text": "' + b"x" * 10_000 + b'"}'  # a body in the same piece is no header
    with connect(gateway) as connection:
        connection.sendall(head(f"Content-Length: {len(body)}", "Connection: close") + body)
        assert drip(connection, b"", 0).startswith(b"HTTP/1.1 200 ")


def test_what_is_no_http_is_told_so(gateway):
    before = rejected(gateway, "malformed")
    for data in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n"):  # the first begins TLS
        with connect(gateway) as connection:
            connection.sendall(data)
            answer = drip(connection, b"", 0)
        assert answer.startswith(b"HTTP/1.1 400 "), data
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "SCN-4112"
    assert rejected(gateway, "malformed") == before + 3


def test_connections_are_bounded_and_come_back(gateway, shared_lab):
    before = rejected(gateway, "connections")
    held = [connect(gateway) for _ in range(60)]
    try:
        time.sleep(0.3)
        answers = [found for connection in held if (found := said(connection))]
        assert len(answers) >= 20
        first = answers[0]
        assert first.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in first
        assert json.loads(first.partition(b"\r\n\r\n")[2])["code"] == "SCN-4111"
    finally:
        for connection in held:
            connection.close()
    shared_lab.until(lambda: gateway.ask("unit").status_code == 200)
    assert rejected(gateway, "connections") >= before + 20


def said(connection: socket.socket) -> bytes:
    """What has come so far."""
    connection.setblocking(False)
    try:
        return connection.recv(65_536)
    except BlockingIOError:
        return b""


def test_a_client_that_takes_no_answer_is_let_go(gateway):
    before = rejected(gateway, "slow")
    body = b"\n".join(b'{"text": "%s"}' % (b"x" * 100_000) for _ in range(100))  # 10 MB of answers, more than the kernel keeps for it
    with connect(gateway) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(head(f"Content-Length: {len(body)}").replace(b"/predict ", b"/predict/batch ") + body)
        end = time.monotonic() + 15
        while rejected(gateway, "slow") == before and time.monotonic() < end:
            time.sleep(0.1)
    assert rejected(gateway, "slow") == before + 1


# ── writes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_head_and_body_of_an_answer_are_one_write_and_nothing_waits_longer_than_a_turn():
    ours, peer = socket.socketpair()
    peer.setblocking(False)

    async def main():
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        joined = Joined(transport, lambda: False)
        joined.write(b"head,")
        with pytest.raises(BlockingIOError):
            peer.recv(100)
        joined.write(b"body")
        assert peer.recv(100) == b"head,body"
        joined.write(b"part")
        await asyncio.sleep(0)
        assert peer.recv(100) == b"part"
        joined.write(b"last")
        joined.close()
        assert peer.recv(100) == b"last"
        joined.write(b"too late")
        await asyncio.sleep(0)
        assert peer.recv(100) == b""

    with peer:
        asyncio.run(main())
