"""``POST /scenarios/{name}/stream``: the parts of one answer as server-sent events.

Each part is ``data: JSON``. The stream closes with ``event: end``, or with ``event: error`` and problem details; an error before the
first part is an ordinary problem answer. A client that leaves stops the generator in the worker.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

from scenarium.core.errors import ScenariumError
from scenarium.gateway import problems
from scenarium.gateway.predict import PROBLEM, Call, Endpoint, count_answer, failed, read_body, routing_key, send_body, send_problem
from scenarium.gateway.requests import Outcome

if TYPE_CHECKING:
    from starlette.types import Receive, Send

    from scenarium.gateway.requests import Request
    from scenarium.gateway.services import Service

BACKLOG = 1 << 20
"""Bytes of parts that may wait for a slow client."""


class Parts:
    """The parts that came and were not sent yet."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.request: Request | None = None
        self.waiting: deque[bytes] = deque()
        self.size = 0
        self.outcome: Outcome | None = None
        self.news = asyncio.Event()

    def put(self, chunk: bytes) -> None:
        """A part came."""
        self.waiting.append(chunk)
        self.size += len(chunk)
        if self.size > BACKLOG and self.request:
            self.service.cancel(self.request, "slow")
        self.news.set()

    def end(self, outcome: Outcome) -> None:
        """Nothing more comes."""
        self.outcome = outcome
        self.news.set()

    async def take(self) -> list[bytes]:
        """All parts that are there, at least one; empty at the end."""
        while not self.waiting and self.outcome is None:
            self.news.clear()
            await self.news.wait()
        found = list(self.waiting)
        self.waiting.clear()
        self.size = 0
        return found


class Stream(Endpoint):
    """The endpoint."""

    async def answer(self, service: Service, call: Call, receive: Receive, send: Send) -> None:
        if service.fault:
            raise service.fault
        if service.version and not service.version.manifest.streams:
            raise ScenariumError("SCN-4005", name=service.name)
        limit_ms = call.deadline(service.config.deadline_ms)
        body = await read_body(receive, service.config.max_body_bytes, call.length, service.name)
        parts = Parts(service)
        request = parts.request = call.request(body, time.monotonic(), limit_ms, parts.end)
        request.key = routing_key(service, call, body)
        request.stream = parts.put
        request.watch = self.watcher(service, request, receive)
        service.submit(request)
        try:
            await self._parts(service, call, request, parts, limit_ms, send)
        finally:
            service.cancel(request)  # where the drain's time is up; one that has ended stays as it is

    async def _parts(self, service: Service, call: Call, request: Request, parts: Parts, limit_ms: float, send: Send) -> None:
        first = await parts.take()
        outcome = parts.outcome
        if not first and outcome and outcome.failure:
            await send_problem(send, failed(service, request, outcome, limit_ms), call, outcome.version)
        elif not first and outcome and outcome.status >= 400:
            count_answer(service, request, outcome)
            headers = [PROBLEM, (b"x-request-id", call.rid_header), (b"x-scenarium-version", b"%d" % outcome.version)]
            await send_body(send, outcome.status, headers, outcome.body)
        else:
            await self._events(service, call, request, parts, first, limit_ms, send)

    async def _events(self, service: Service, call: Call, request: Request, parts: Parts, first: list[bytes], limit_ms: float, send: Send) -> None:
        version = request.slot.slot.version if request.slot else 0
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-request-id", call.rid_header),
            (b"x-scenarium-version", b"%d" % version),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while first:
            await send({"type": "http.response.body", "body": b"".join(b"data: %s\n\n" % part for part in first), "more_body": True})
            first = await parts.take()
        outcome = parts.outcome
        assert outcome is not None
        if outcome.failure:
            last = b"event: error\ndata: %s\n\n" % problems.body(failed(service, request, outcome, limit_ms), call.language)
        else:
            count_answer(service, request, outcome)
            last = b"event: error\ndata: %s\n\n" % outcome.body if outcome.status >= 400 else b"event: end\ndata: {}\n\n"
        await send({"type": "http.response.body", "body": last})
