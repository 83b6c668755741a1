"""One job while it is run: its requests go through the scenario's queue, and what comes back becomes the job's end."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING

from scenarium.core.errors import ScenariumError
from scenarium.gateway import problems
from scenarium.gateway.admission import Admission, Caller
from scenarium.gateway.bulk import window
from scenarium.gateway.elements import Elements
from scenarium.gateway.job_file import End, Job, fault_text
from scenarium.gateway.limits import Limited
from scenarium.gateway.predict import Call, count_answer
from scenarium.gateway.requests import Failure, Outcome, Request, settle

if TYPE_CHECKING:
    from scenarium.gateway.services import Service

RETRY_S = 0.02
LONGEST_WAIT_S = 1.0
PIECE = 1 << 14
"""Bytes of a batch that are cut at once; between two pieces the loop serves others."""
JSON, LINES = "application/json", "application/x-ndjson"


class Interrupted(Exception):
    """The scenario or the gateway stopped under the job."""


class Cancelled(Exception):
    """Somebody cancelled the job; the file says so already."""


class Run:
    """One run of one job. ``closing`` and ``over`` tell that the gateway is to end, and that its time for that is up."""

    def __init__(self, service: Service, admission: Admission, max_bytes: int) -> None:
        self.service = service
        self.admission = admission
        self.max_bytes = max_bytes
        self.pure = service.version is not None and service.version.manifest.pure
        self.requests: set[Request] = set()
        self.done = self.errors = 0
        self.cancelled = self.closing = self.over = False
        self._sent = False
        self._first = True
        self._turn = asyncio.Lock()

    @property
    def sent(self) -> bool:
        """Whether a worker has, or had, any of it."""
        return self._sent or any(request.sent for request in self.requests)

    def cancel(self) -> None:
        """End it without a result."""
        self.cancelled = True
        self._stop("cancelled")

    def close(self) -> None:
        """The gateway is to end: take back what no worker has, where it can be run again. What cannot goes on until ``stop``."""
        self.closing = True
        if self._halted:
            for request in [request for request in self.requests if not request.sent]:
                self.service.cancel(request, "stopped")

    def stop(self) -> None:
        """The gateway's time is up."""
        self.over = True
        self._stop("stopped")

    @property
    def _halted(self) -> bool:
        return self.over or (self.closing and (self.pure or not self.sent))

    def _stop(self, failure: Failure) -> None:
        for request in list(self.requests):
            self.service.cancel(request, failure)

    async def end_of(self, job: Job, body: bytes) -> End:
        """Run it.

        Raises:
            Interrupted, Cancelled.
        """
        name = self.service.name
        until = time.monotonic() + job.deadline_ms / 1000
        parts = bytearray()

        def part(chunk: bytes) -> None:
            self.done += 1
            parts.extend(chunk + b"\n")
            if len(parts) > self.max_bytes:
                self._stop("slow")

        try:
            if job.mode == "batch":
                return await self._batch(job, body, until)
            outcome = await self._ask(job, body, until, part if job.mode == "stream" else None)
            if outcome.failure == "slow" or len(outcome.body) > self.max_bytes:
                raise ScenariumError("SCN-4126", name=name, limit=self.max_bytes)
            if outcome.failure:
                raise problems.of_failure(self.service, outcome, job.deadline_ms)
            if outcome.status >= 400:
                told = outcome.body.decode()
                return End(version=outcome.version, done=self.done, errors=1, fault=f'{{"en": {told}, "zh": {told}}}')
            return End(LINES, bytes(parts), outcome.version, self.done) if job.mode == "stream" else End(JSON, outcome.body, outcome.version, 1)
        except ScenariumError as error:
            return End(done=self.done, errors=self.errors, fault=fault_text(error))

    async def _batch(self, job: Job, body: bytes, until: float) -> End:
        """The elements, a few at a time; the answers in order, an element's problem in its place.

        Raises:
            ScenariumError: SCN-4007 (the job's deadline), SCN-4126.
        """
        cutter = Elements(self.service.config.max_body_bytes, self.service.name)
        answers, version = bytearray(), 0
        open_: deque[asyncio.Task[Outcome]] = deque()

        async def take() -> None:
            nonlocal version
            outcome = await open_.popleft()
            if outcome.failure == "deadline":
                raise problems.of_failure(self.service, outcome, job.deadline_ms)
            answer = problems.body(problems.of_failure(self.service, outcome, job.deadline_ms), job.language) if outcome.failure else outcome.body
            self.done += 1
            self.errors += bool(outcome.failure) or outcome.status >= 400
            version = outcome.version or version
            answers.extend((b",\n" if answers else b"[") + answer if cutter.array else answer + b"\n")
            if len(answers) > self.max_bytes:
                raise ScenariumError("SCN-4126", name=self.service.name, limit=self.max_bytes)

        try:
            async for element in elements(cutter, body):
                if len(open_) >= window(self.service):
                    await take()
                open_.append(asyncio.create_task(self._element(job, element, until)))
            while open_:
                await take()
        finally:
            for task in open_:
                task.cancel()
            await asyncio.gather(*open_, return_exceptions=True)
        if cutter.array:
            answers.extend(b"]" if answers else b"[]")
        return End(JSON if cutter.array else LINES, bytes(answers), version, self.done, self.errors)

    async def _element(self, job: Job, body: bytes, until: float) -> Outcome:
        """One element of a batch. Each counts for the key's limits (the first did when the job was let in) and waits for its turn."""
        key = self.admission.keyring.keys.get(job.owner)
        async with self._turn:
            first, self._first = self._first, False
            while key and not (first or self.cancelled or self._halted):
                try:
                    await self.admission.charge(Caller(key))
                    break
                except Limited as fault:
                    if time.monotonic() + fault.wait > until:
                        return Outcome(fault.status, problems.body(fault, job.language))
                    self.admission.rejected[fault.reason] -= 1  # it is not refused, it waits
                    await asyncio.sleep(min(fault.wait, LONGEST_WAIT_S))
        return await self._ask(job, body, until)

    async def _ask(self, job: Job, body: bytes, until: float, part: Callable[[bytes], None] | None = None) -> Outcome:
        """One request to the scenario, which waits until half of the queue is free.

        Raises:
            Interrupted, Cancelled.
        """
        service, room = self.service, max(1, self.service.config.queue_size // 2)
        while service.batcher.depth >= room and time.monotonic() < until and not (self.cancelled or self._halted):
            await asyncio.sleep(RETRY_S)
        if self.cancelled:
            raise Cancelled
        if self._halted or service.fault:
            raise Interrupted
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        now = time.monotonic()
        call = Call([])
        call.priority, call.language, call.content_type, call.trace = b"low", job.language, job.content_type, job.trace
        call.rid_header = job.id.encode()
        request = call.request(body, now, (until - now) * 1000, partial(settle, future))
        request.key, request.stream = job.routing, part
        self.requests.add(request)
        try:
            service.submit(request)
            outcome = await future
        finally:
            service.cancel(request)  # does nothing where it has ended
            self._sent = self.sent
            self.requests.discard(request)
        again = outcome.failure in ("stopped", "busy", "memory") or (outcome.failure == "died" and part is not None)
        if outcome.failure is None:
            count_answer(service, request, outcome)
        elif not again:
            service.stats.failed(outcome.failure)
        if self.cancelled:
            raise Cancelled
        if again:
            raise Interrupted
        return outcome


async def elements(cutter: Elements, body: bytes) -> AsyncIterator[bytes]:
    """The elements of a batch, cut piece by piece.

    Raises:
        ScenariumError: SCN-4002, SCN-4012.
    """
    for at in range(0, len(body), PIECE):
        for element in cutter.feed(body[at : at + PIECE]):
            yield element
        await asyncio.sleep(0)
    for element in cutter.close():
        yield element
