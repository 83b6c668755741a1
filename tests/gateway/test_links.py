"""A worker runs code that is not the gateway's: what it writes and prints must harm nobody but itself."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from scenarium.core.config import ServeConfig
from scenarium.core.registry import Registry
from scenarium.core.settings import Settings
from scenarium.core.store import Store
from scenarium.core.workers import frames
from scenarium.gateway import links, logs
from scenarium.gateway.generations import Generation
from scenarium.gateway.links import WorkerLink
from scenarium.gateway.memory import Memory
from scenarium.gateway.services import Service
from scenarium.gateway.zygotes import Nursery, Process

READY = {"proto": 1, "pid": 1, "schema": "", "max_batch": 8, "concurrency": "batch", "pure": True, "streams": False, "load_ms": 1}


class Owner:
    """Takes down what the link reports."""

    name = "hostile"

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.lines: list[str] = []

    def answered(self, link: WorkerLink, answer: frames.Answer) -> None:
        self.told.append(answer)

    def pump(self) -> None:
        self.told.append("pump")

    def part(self, link: WorkerLink, rid: int, chunk: bytes) -> None:
        self.told.append((rid, chunk))

    def logged(self, link: WorkerLink, rid: int, entry: dict[str, Any]) -> None:
        self.told.append((rid, entry))

    def said(self, link: WorkerLink, line: str) -> None:
        self.lines.append(line)

    def released(self, link: WorkerLink) -> None:
        self.told.append("released")

    def died(self, link: WorkerLink) -> None:
        self.told.append("died")


async def hostile(data: bytes, code: str = "import time; time.sleep(60)", seconds: float = 10.0) -> tuple[WorkerLink, Owner]:
    """A link to a process that does ``code``, over whose socket ``data`` came; when that process has ended."""
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    popen = subprocess.Popen([sys.executable, "-c", code], stderr=write, stdin=subprocess.DEVNULL)
    os.close(write)
    owner = Owner()
    link = WorkerLink(owner, 1, Process(popen.pid, ours, read, os.pidfd_open(popen.pid), popen), None)  # type: ignore[arg-type]
    await link.open({"threads": 1})
    with theirs:
        theirs.setblocking(False)
        if data:
            await asyncio.get_running_loop().sock_sendall(theirs, data)
        try:
            await asyncio.wait_for(asyncio.shield(link.ended), seconds)
        finally:
            popen.kill()
            popen.wait()
    return link, owner


def item(status: int = 200, rid: int = 7, body: bytes = b"{}") -> bytes:
    return frames.HEAD.pack(1 + frames.ANSWER.size + len(body), frames.ITEM) + frames.ANSWER.pack(rid, status, 0, 0, 0, 0) + body


GARBAGE = {
    "a frame of no bytes": b"\0\0\0\0\x42",
    "a frame of 4 GB": b"\xff\xff\xff\xff\x42",
    "a frame beyond the largest answer": frames.HEAD.pack(frames.LARGEST_ANSWER + 1, frames.ITEM),
    "text": b"Traceback (most recent call last):\n",
    "an unknown kind": frames.frame(99, b"x"),
    "a frame for a worker": frames.frame(frames.DRAIN),
    "an answer that is cut off": frames.frame(frames.ITEM, b"\0" * 5),
    "a part without an id": frames.frame(frames.CHUNK, b"x"),
    "a token that is too long": frames.frame(frames.PONG, b"x" * 9),
    **{f"status {status}": item(status) for status in (0, 42, 100, 204, 304, 600, 65535)},
    "ready twice": frames.json_frame(frames.READY, READY) * 2,
    "ready, no JSON": frames.frame(frames.READY, b"{"),
    "ready, deep JSON": frames.frame(frames.READY, b"[" * 100_000),
    "ready, a list": frames.json_frame(frames.READY, []),
    **{f"ready, {k} = {v!r}": frames.json_frame(frames.READY, READY | {k: v}) for k, v in [("max_batch", 0), ("max_batch", "8"), ("concurrency", -1)]},
    "a fault without its texts": frames.json_frame(frames.FAULT, {"code": "SCN-4003"}),
    "a fault that is a text": frames.json_frame(frames.FAULT, "no"),
    "a log entry that is a number": frames.rid_frame(frames.LOG, 1, b"1"),
    "a log entry, no JSON": frames.rid_frame(frames.LOG, 1, b"\xff"),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_ends_the_worker_and_what_came_before_it_counts(what: str, capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_format("json")
    link, owner = asyncio.run(hostile(item(body=b'{"good": 1}') + GARBAGE[what] + item(rid=8)))
    assert [told.rid for told in owner.told if isinstance(told, frames.Answer)] == [7]
    assert owner.told[-1] == "died"
    assert links.describe_exit(link.process.popen.returncode)[0] == "it was ended by SIGKILL"
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["worker_garbled"]
    assert len(events[0]["reason"]) < 500


def test_a_frame_that_never_ends_takes_no_more_than_its_bytes() -> None:
    async def run() -> int:
        # The length is announced, the bytes never come: nothing is set aside for them.
        link, _ = await hostile(frames.HEAD.pack(frames.LARGEST_ANSWER, frames.ITEM) + b"x" * 1000, "import time; time.sleep(1)")
        return len(link._buffer)

    assert asyncio.run(run()) == 1005


@pytest.mark.alone
def test_a_flood_of_lines_takes_bounded_time_and_memory() -> None:
    async def run() -> tuple[float, Owner]:
        late = 0.0

        async def pulse() -> None:
            nonlocal late
            while True:
                began = time.monotonic()
                await asyncio.sleep(0.005)
                late = max(late, time.monotonic() - began)

        beat = asyncio.create_task(pulse())
        flood = "import sys, time\nend = time.time() + 2.5\nwhile time.time() < end: sys.stderr.write('x\\n' * 30000)\nsys.stderr.write('last')"
        _, owner = await hostile(b"", flood)
        beat.cancel()
        return late, owner

    late, owner = asyncio.run(run())
    assert late < 0.5  # a look at all the lines would take seconds each time
    told = [line for line in owner.lines if line != "x"]
    assert 2 <= len(told) <= 6
    assert all("lines left out" in line for line in told)
    assert len(owner.lines) <= 6 * links.LINES_S + 6
    assert sum(int(line[1:].split()[0]) for line in told) > 50_000


def test_nothing_is_left_out_of_what_is_within_bounds() -> None:
    _, owner = asyncio.run(hostile(b"", "import sys\nfor n in range(900): print(n, '好', file=sys.stderr)"))
    assert owner.lines == [f"{n} 好" for n in range(900)]


def test_a_real_gateway_serves_its_neighbours_beside_a_worker_that_garbles(lab: Any, tmp_path: Path) -> None:
    lab.publish("garbles")
    lab.publish("unit")
    gateway = lab.start({"garbles": "garbles", "unit": "unit"})
    gateway.ready("garbles", "unit")
    with ThreadPoolExecutor(2) as pool:
        stop = time.monotonic() + 4

        def neighbour() -> list[int]:
            found = []
            while time.monotonic() < stop:
                found.append(gateway.ask("unit").status_code)
            return found

        served = pool.submit(neighbour)
        for frame in (b"\0\0\0\0\x42", frames.HEAD.pack(frames.LARGEST_ANSWER, frames.ITEM)[:4] + b"\x63garbage", frames.frame(99)):
            answer = gateway.client.post(
                "/scenarios/garbles/predict", json={"frames": base64.b64encode(frame).decode()}, headers={"X-Scenarium-Deadline-Ms": "3000"}
            )
            assert answer.status_code in (503, 504)
            assert answer.json()["code"] in ("SCN-4007", "SCN-4008")
            if answer.status_code == 504:  # the frame's end never came: whoever waited is told, and the worker is ended after its grace
                break
            gateway.ready("garbles")
        assert set(served.result()) == {200}
    gateway.ready("garbles")
    assert gateway.client.post("/scenarios/garbles/predict", json={"lines": 200_000}).json() == {"written": 0}
    assert gateway.ask("unit").status_code == 200
    assert [event["event"] for event in gateway.events].count("worker_output") <= 2 * links.LINES_S + 2
    assert not [event for event in gateway.events if event["event"] == "gateway_fault"]


def test_a_worker_that_died_since_it_was_ready_gets_no_work(tmp_path: Path) -> None:
    async def run() -> None:
        link, _ = await hostile(frames.json_frame(frames.READY, READY), "pass")
        assert await link.ready is None
        registry, memory = Registry(Settings.read(environ={}), {}), Memory(None, None, 0.0, {})
        service = Service("unit", "unit", ServeConfig(), registry, Store(str(tmp_path)), cast(Nursery, None), memory)
        service.current = generation = Generation.__new__(Generation)  # without its tasks, which start workers
        generation.links = [link]
        service.joined(generation, link)
        assert not service.batcher.workers
        assert service.state == "starting"

    asyncio.run(run())
