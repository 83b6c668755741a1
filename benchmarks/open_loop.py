"""Open-loop load: requests leave when a Poisson process says so, whether or not the earlier ones are answered.

    python -m benchmarks.open_loop URL RATE SECONDS BODY_FILE [HEADER=VALUE …]

One process, one asyncio protocol a connection, as many connections as there are open requests. A request's time runs from its write to
the last byte of its answer; how late the writes were against the schedule is told too, so that a generator that cannot keep up shows.
Prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

WAIT_S = 5.0
"""How long answers are waited for after the last request."""


class Connection(asyncio.Protocol):
    """One keep-alive connection; it has at most one request open."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.buffer = b""
        self.began = 0.0
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        """One request."""
        self.open = True
        self.began = time.perf_counter()
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        at = lower.index(b"content-length:") + 15
        if len(rest) < int(lower[at : (lower + b"\r").index(b"\r", at)]):
            return
        self.buffer = b""
        self.open = False
        self.load.answered(self, int(head[9:12]), time.perf_counter() - self.began)

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.gone(self)


class Load:
    """The schedule and what came of it."""

    def __init__(self, url: str, headers: dict[str, str], body: bytes) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname, parts.port
        lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
        self.request = "\r\n".join([*lines, "", ""]).encode() + body
        self.idle: list[Connection] = []
        self.times: dict[int, list[float]] = {}
        self.during: dict[int, int] = {}
        """Answers that came while requests were sent."""
        self.sending = True
        self.late: list[float] = []
        self.broken = 0
        self.sent = 0

    def answered(self, connection: Connection, status: int, seconds: float) -> None:
        """An answer is complete."""
        self.times.setdefault(status, []).append(seconds)
        self.during[status] = self.during.get(status, 0) + self.sending
        self.idle.append(connection)

    def gone(self, connection: Connection) -> None:
        """A connection ended."""
        self.broken += connection.open
        if connection in self.idle:
            self.idle.remove(connection)

    async def connect(self) -> Connection:
        """A new connection."""
        _, made = await asyncio.get_running_loop().create_connection(lambda: Connection(self), self.host, self.port)
        return made

    async def run(self, rate: float, seconds: float, connections: int) -> None:
        """Send on schedule, then wait for what is open."""
        self.idle = [await self.connect() for _ in range(connections)]
        draw = random.Random(0)
        began = due = time.perf_counter()
        while due - began < seconds:
            due += draw.expovariate(rate)
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            self.late.append(time.perf_counter() - due)
            (self.idle.pop() if self.idle else await self.connect()).send()
            self.sent += 1
            if not self.sent % 16:
                await asyncio.sleep(0)  # read answers also while behind the schedule
        self.took = time.perf_counter() - began
        self.sending = False
        until = time.perf_counter() + WAIT_S
        while sum(map(len, self.times.values())) + self.broken < self.sent and time.perf_counter() < until:
            await asyncio.sleep(0.02)

    def report(self) -> dict[str, Any]:
        """What came: by status the count and times in ms."""
        return {
            "sent": self.sent,
            "seconds": self.took,
            "broken": self.broken,
            "unanswered": self.sent - self.broken - sum(map(len, self.times.values())),
            "late_ms": percentiles(self.late),
            "answers": {str(status): {"count": len(times), "during": self.during[status], "ms": percentiles(times)} for status, times in self.times.items()},
        }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds at some percentiles."""
    ordered = sorted(seconds)
    return {name: round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))], 3) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}


def main() -> None:
    """Run and print."""
    url, rate, seconds, body, *headers = sys.argv[1:]
    load = Load(url, dict(header.partition("=")[::2] for header in headers), Path(body).read_bytes())
    uvloop.run(load.run(float(rate), float(seconds), connections=400))
    print(json.dumps(load.report()))


if __name__ == "__main__":
    main()
