"""``POST /scenarios/{name}/predict/batch``: a JSON array or JSON lines of any length in, the answers in order out.

The elements go through the scenario's queue like single requests, a few at a time, so memory stays bounded and other clients are
served between them. Each counts for the caller's limits, and waits up to the deadline until they let it in. An element that fails
gives its problem details in its place. The answers wait in a temporary file until the body is read, because most clients read nothing
while they send.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import deque
from functools import partial
from typing import IO, TYPE_CHECKING

from scenarium.core.errors import ScenariumError
from scenarium.gateway import problems
from scenarium.gateway.elements import Elements
from scenarium.gateway.predict import Call, Disconnected, Endpoint, count_answer, failed
from scenarium.gateway.requests import Outcome, Request, settle

if TYPE_CHECKING:
    from starlette.types import Receive, Send

    from scenarium.gateway.admission import Admission
    from scenarium.gateway.services import Service

IN_MEMORY = 1 << 20
PIECE = 1 << 16
RETRY_S = 0.01


class Bulk(Endpoint):
    """The endpoint."""

    async def answer(self, service: Service, call: Call, receive: Receive, send: Send) -> None:
        if service.fault:
            raise service.fault
        limit_ms = call.deadline(service.config.deadline_ms)
        work = _Work(service, call, limit_ms, self.gateway.admission)
        with tempfile.SpooledTemporaryFile(IN_MEMORY) as answers:
            try:
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    more = message.get("more_body", False)
                    for element in work.elements.feed(message.get("body", b"")):
                        await work.put(element, answers)
                for element in work.elements.close():
                    await work.put(element, answers)
                await work.finish(answers, receive)
            finally:
                work.cancel()
            await _send(send, call, work, answers)


def window(service: Service) -> int:
    """Elements at once: enough that a batch gathers while another runs, and never the whole queue."""
    largest = max((link.max_batch for link in service.links()), default=1)
    return max(1, min(2 * largest * service.config.workers, service.config.queue_size // 2))


class _Work:
    """The elements on their way."""

    def __init__(self, service: Service, call: Call, limit_ms: float, admission: Admission) -> None:
        self.service = service
        self.admission = admission
        self.call = call
        self.limit_ms = limit_ms
        self.elements = Elements(service.config.max_body_bytes, service.name)
        self.open: deque[asyncio.Task[bytes]] = deque()
        self.turn = asyncio.Lock()
        self.count = self.errors = 0

    async def put(self, element: bytes, answers: IO[bytes]) -> None:
        """Ask for one element; wait for the oldest where too many are open."""
        while len(self.open) >= window(self.service):
            await self._write(answers)
        self.open.append(asyncio.create_task(self._one(element, self.count)))
        self.count += 1

    async def finish(self, answers: IO[bytes], receive: Receive) -> None:
        """Wait for all, or until the client leaves: after the body nothing else can come from it."""
        gone = asyncio.ensure_future(receive())
        try:
            while self.open:
                await asyncio.wait({self.open[0], gone}, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    raise Disconnected
                await self._write(answers)
        finally:
            gone.cancel()

    def cancel(self) -> None:
        """Give up what is open."""
        for task in self.open:
            task.cancel()
        self.open.clear()

    async def _one(self, element: bytes, number: int) -> bytes:
        """The answer to one element, or its problem details."""
        service = self.service
        if number:  # the first was counted when the batch was let in
            async with self.turn:
                await self.admission.charge_in_turn(self.call.caller, self.limit_ms / 1000)
        request, future = self._request(element, number)
        while service.batcher.depth >= service.config.queue_size and time.monotonic() < request.deadline:
            await asyncio.sleep(RETRY_S)  # a batch waits its turn; single requests are refused
        if service.fault:
            raise service.fault
        service.submit(request)
        try:
            outcome = await future
        except asyncio.CancelledError:
            service.cancel(request)
            raise
        if outcome.failure is None:
            count_answer(service, request, outcome)
            self.errors += outcome.status >= 400
            return outcome.body
        self.errors += 1
        return problems.body(failed(service, request, outcome, self.limit_ms), self.call.language)

    def _request(self, element: bytes, number: int) -> tuple[Request, asyncio.Future[Outcome]]:
        item = Call([])
        item.language, item.trace, item.key, item.priority = self.call.language, self.call.trace, self.call.key, self.call.priority
        item.rid_header = b"%s.%d" % (self.call.rid_header, number)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        return item.request(element, time.monotonic(), self.limit_ms, partial(settle, future)), future

    async def _write(self, answers: IO[bytes]) -> None:
        try:
            answer = await self.open[0]
        except ScenariumError as error:
            self.errors += 1
            answer = problems.body(error, self.call.language)
        self.open.popleft()
        if self.elements.array:
            answers.write(b"[" if not answers.tell() else b",\n")
            answers.write(answer)
        else:
            answers.write(answer + b"\n")


async def _send(send: Send, call: Call, work: _Work, answers: IO[bytes]) -> None:
    if work.elements.array:
        answers.write(b"]" if answers.tell() else b"[]")
    headers = [
        (b"content-type", b"application/json" if work.elements.array else b"application/x-ndjson"),
        (b"content-length", b"%d" % answers.tell()),
        (b"x-request-id", call.rid_header),
        (b"x-scenarium-items", b"%d" % work.count),
        (b"x-scenarium-errors", b"%d" % work.errors),
    ]
    answers.seek(0)
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while piece := answers.read(PIECE):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
