"""Jobs: predictions that take longer than a client wants to wait. They are kept in a file (``job_file``) and outlive the gateway.

A job goes through its scenario's ordinary queue, at low priority, with a deadline of its own that counts from when it is begun. A few jobs
of a scenario are begun at once, and only while half of the queue is free, so single requests are never refused for their sake. A job that
is cut off by the end of its gateway is run again where the scenario is pure; else, once a worker had it, it has failed, since it may have
changed something. The file has the last word on how a job ended, so it ends once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from scenarium.core.errors import ScenariumError, Words
from scenarium.gateway import logs, problems
from scenarium.gateway.admission import Caller
from scenarium.gateway.batching import Failure, Outcome, Request
from scenarium.gateway.bulk import window
from scenarium.gateway.elements import Elements
from scenarium.gateway.job_file import MOST_RUNS, End, Job, JobFile, New, State, fault_text
from scenarium.gateway.limits import Limited
from scenarium.gateway.predict import Call

if TYPE_CHECKING:
    from scenarium.gateway.app import Gateway
    from scenarium.gateway.services import Service

TICK_S = 1.0
SWEEP_S = 60.0
RETRY_S = 0.02
PIECE = 1 << 14
"""Bytes of a batch that are cut at once; between two pieces the loop serves others."""
LINES, ARRAY, ANSWER = "application/x-ndjson", "application/json", "application/json"

T = TypeVar("T")


class Interrupted(Exception):
    """The scenario stopped under the job."""


class Cancelled(Exception):
    """Somebody cancelled the job; the file says so already."""


class _Turn:
    """The order in which the elements of one batch are counted."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.first = True


class Run:
    """A job that is being run."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.pure = service.version is not None and service.version.manifest.pure
        self.requests: set[Request] = set()
        self.done = self.errors = 0
        self.cancelled = False
        self._sent = False

    @property
    def sent(self) -> bool:
        """Whether a worker has, or had, any of it."""
        return self._sent or any(request.sent for request in self.requests)

    def ended(self, request: Request) -> None:
        """One of its requests is over."""
        self._sent = self.sent
        self.requests.discard(request)

    def stop(self, failure: Failure, unsent_only: bool = False) -> None:
        """End its requests."""
        for request in list(self.requests):
            if not (unsent_only and request.sent):
                self.service.batcher.cancel(request, failure)


class Jobs:
    """All jobs of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        config = gateway.config
        self.gateway = gateway
        self.config = config
        path = config.jobs and gateway.registry.settings.path_of(config.jobs, "gateway", "jobs")
        self.file = JobFile(path, config.jobs_keep_s, config.max_jobs) if path else None
        self.waiting: dict[str, deque[str]] = {}
        """Ids of the queued jobs by scenario, oldest first."""
        self.running: dict[str, dict[str, Run]] = {}
        """The begun ones by scenario and id."""
        self.ended: Counter[tuple[str, State]] = Counter()
        """How many ended, by scenario and state."""
        self._opened = self._over = False
        self._until = 0.0
        """When what runs is stopped, once the gateway is to end."""
        self._opening = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer = ThreadPoolExecutor(1, "jobs")
        self._told = ""
        self._next_sweep = 0.0

    # ── what routes ask ───────────────────────────────────────────────────────────────────────────────────────────────

    async def add(self, new: New) -> Job:
        """Take a job in; it is on the disk when this returns.

        Raises:
            ScenariumError: SCN-4124, SCN-4127, SCN-4128.
        """
        file = await self._open()
        job, fresh = await self._call(file.add, new)
        if fresh:
            self.waiting.setdefault(job.scenario, deque()).append(job.id)
            self._begin_some()
        return job

    async def find(self, ident: str, owner: str | None) -> Job:
        """One job. ``owner``: who asks; None: an administrator.

        Raises:
            ScenariumError: SCN-4121 (no such job, or another's), SCN-4127.
        """
        file = await self._reading()
        job = await self._call(file.get, ident) if file else None
        if job is None or owner not in (None, job.owner):
            raise ScenariumError("SCN-4121", ident=ident)
        return job

    async def result(self, job: Job) -> bytes | None:
        """The result of a finished job; None once it has expired."""
        return await self._call((await self._open()).result, job.id)

    async def page(self, owner: str | None, scenario: str | None, state: str | None, below: int | None, limit: int) -> list[Job]:
        """See ``JobFile.page``."""
        file = await self._reading()
        return await self._call(file.page, owner, scenario, state, below, limit) if file else []

    async def cancel(self, job: Job) -> Job:
        """End a job that has not ended: a queued one is never run, a running one is stopped."""
        ended = job.ended is not None
        job = await self._call((await self._open()).cancel, job.id)
        if job.state == "cancelled" and not ended:
            self._count(job.scenario, "cancelled", job.id)
        self._forget(job.scenario, job.id)
        run = self.run_of(job)
        if run and job.state == "cancelled":
            run.cancelled = True
            run.stop("cancelled")
        return job

    def run_of(self, job: Job) -> Run | None:
        """What is known beside the file of a job that is being run."""
        return self.running.get(job.scenario, {}).get(job.id)

    # ── its life ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def follow(self) -> None:
        """Begin jobs when there is room for them, forget old ones, and see that the gateway is to end."""
        while True:
            try:
                if self.file and (self._opened or self.file.path.exists()):
                    file = await self._open()
                    if time.monotonic() >= self._next_sweep:
                        self._next_sweep = time.monotonic() + min(SWEEP_S, max(TICK_S, self.config.jobs_keep_s / 2))
                        for ident, scenario in await self._call(file.sweep):
                            self._forget(scenario, ident)
                    self._begin_some()
                self._told = ""
            except ScenariumError as fault:
                self._tell(fault)
            if self.gateway.draining:
                self._pause()
            await asyncio.sleep(TICK_S)

    async def close(self) -> None:
        """Let what runs end, for ``drain_s`` from when the gateway was told to end; stop it then, write how it ended, and let the file go."""
        self._pause()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=max(0.0, self._until - time.monotonic()))
        self._over = True
        for runs in self.running.values():
            for run in runs.values():
                run.stop("stopped")
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self.file and self._opened:
            await self._call(self.file.close)
        self._writer.shutdown()

    def _pause(self) -> None:
        """Begin nothing more, and take back what no worker has, where it can be run again."""
        if self._until:
            return
        self._until = time.monotonic() + self.gateway.drain_s
        for runs in self.running.values():
            for run in runs.values():
                if run.pure or not run.sent:
                    run.stop("stopped", unsent_only=True)

    async def _open(self) -> JobFile:
        if self.file is None:
            raise ScenariumError("SCN-4127", reason=Words("[gateway] jobs names no file", "[gateway] jobs 未指定文件"))
        async with self._opening:
            if not self._opened:
                for ident, scenario in await self._call(self.file.open):
                    self.waiting.setdefault(scenario, deque()).append(ident)
                self._opened = True
        return self.file

    async def _reading(self) -> JobFile | None:
        """The file, which is not made for a question's sake."""
        return await self._open() if self.file and (self._opened or self.file.path.exists()) else None

    def _call(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._writer, function, *arguments)

    def _forget(self, scenario: str, ident: str) -> None:
        with contextlib.suppress(ValueError):
            self.waiting.get(scenario, deque()).remove(ident)

    def _tell(self, fault: ScenariumError) -> None:
        """Log a fault of the file, once."""
        if fault.title() != self._told:
            self._told = fault.title()
            logs.event("error", "jobs_unusable", code=fault.code, title=fault.title(), hint=fault.hint())

    # ── running ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin_some(self) -> None:
        if self._until or self.gateway.draining:
            return
        for name, waiting in self.waiting.items():
            service = self.gateway.services.get(name)
            runs = self.running.setdefault(name, {})
            while waiting and service and service.version and service.state == "ready" and len(runs) < self.config.jobs_at_once:
                ident = waiting.popleft()
                runs[ident] = Run(service)
                task = asyncio.create_task(self._run(ident, runs[ident]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _run(self, ident: str, run: Run) -> None:
        """One job, from when it leaves the queue to what the file says of its end."""
        assert self.file
        name = run.service.name
        try:
            begun = await self._written(self.file.begin, ident, run.pure)
            if begun is None:
                return
            job, body = begun
            try:
                end = await self._end_of(job, body, run)
            except Cancelled:
                return
            except Interrupted:
                if not run.sent or (run.pure and job.runs < MOST_RUNS):
                    if await self._written(self.file.again, ident, run.sent):
                        self.waiting[name].appendleft(ident)
                    return
                end = End(fault=fault_text(ScenariumError("SCN-4125", name=name)), done=run.done, errors=run.errors)
            if await self._written(self.file.end, ident, end):
                self._count(name, "failed" if end.fault else "done", ident)
        except ScenariumError as fault:  # the gateway ends, and the file cannot be written: the next one finds the job running
            self._tell(fault)
        finally:
            del self.running[name][ident]
            self._begin_some()

    async def _written(self, function: Callable[..., T], *arguments: Any) -> T:
        """Write to the file, however long that is not possible: an answer that was computed is not thrown away for a full disk.

        Raises:
            ScenariumError: SCN-4127, when the gateway ends.
        """
        while True:
            try:
                return await self._call(function, *arguments)
            except ScenariumError as fault:
                self._tell(fault)
                if self._over:
                    raise
                await asyncio.sleep(RETRY_S if self._until else TICK_S)

    def _count(self, scenario: str, state: State, ident: str) -> None:
        self.ended[scenario, state] += 1
        logs.event("info", "job_ended", scenario=scenario, job=ident, state=state)

    async def _end_of(self, job: Job, body: bytes, run: Run) -> End:
        """Run it.

        Raises:
            Interrupted, Cancelled.
        """
        service = run.service
        until = time.monotonic() + job.deadline_ms / 1000
        try:
            if job.mode == "batch":
                return await self._batch(job, body, run, until)
            parts = bytearray()

            def part(chunk: bytes) -> None:
                run.done += 1
                parts.extend(chunk + b"\n")
                if len(parts) > self.config.max_job_bytes:
                    run.stop("slow")

            outcome = await self._ask(job, body, run, until, part if job.mode == "stream" else None)
            if outcome.failure == "slow" or len(outcome.body) > self.config.max_job_bytes:
                raise ScenariumError("SCN-4126", name=service.name, limit=self.config.max_job_bytes)
            if outcome.failure:
                raise problems.of_failure(service, outcome, job.deadline_ms)
            if outcome.status >= 400:
                told = outcome.body.decode()
                return End(version=outcome.version, done=run.done, errors=1, fault=f'{{"en": {told}, "zh": {told}}}')
            if job.mode == "stream":
                return End(LINES, bytes(parts), outcome.version, run.done)
            return End(ANSWER, outcome.body, outcome.version, 1)
        except ScenariumError as error:
            return End(done=run.done, errors=run.errors, fault=fault_text(error))

    async def _batch(self, job: Job, body: bytes, run: Run, until: float) -> End:
        service = run.service
        answers, version = bytearray(), 0
        open_: deque[asyncio.Task[Outcome]] = deque()
        cutter, turn = Elements(service.config.max_body_bytes, service.name), _Turn()

        async def take() -> None:
            nonlocal version
            outcome = await open_.popleft()
            if outcome.failure == "deadline":
                raise ScenariumError("SCN-4007", name=service.name, ms=round(job.deadline_ms))
            failure = outcome.failure and problems.body(problems.of_failure(service, outcome, job.deadline_ms), job.language)
            run.done += 1
            run.errors += bool(failure) or outcome.status >= 400
            version = outcome.version or version
            answers.extend((b"[" if not answers else b",\n") if cutter.array else b"")
            answers.extend((failure or outcome.body) + (b"" if cutter.array else b"\n"))
            if len(answers) > self.config.max_job_bytes:
                raise ScenariumError("SCN-4126", name=service.name, limit=self.config.max_job_bytes)

        try:
            async for element in elements(cutter, body):
                if len(open_) >= window(service):
                    await take()
                open_.append(asyncio.create_task(self._element(job, element, run, until, turn)))
            while open_:
                await take()
        finally:
            for task in open_:
                task.cancel()
            await asyncio.gather(*open_, return_exceptions=True)
        if cutter.array:
            answers.extend(b"]" if answers else b"[]")
        return End(ARRAY if cutter.array else LINES, bytes(answers), version, run.done, run.errors)

    async def _element(self, job: Job, body: bytes, run: Run, until: float, turn: _Turn) -> Outcome:
        """One element of a batch. Each counts for the key's limits (the first did when the job was let in) and waits for its turn."""
        key = self.gateway.admission.keyring.keys.get(job.owner)
        async with turn.lock:
            first, turn.first = turn.first, False
            while key and not first:
                try:
                    await self.gateway.admission.charge(Caller(key))
                    break
                except Limited as fault:
                    if time.monotonic() + fault.wait > until:
                        return Outcome(fault.status, problems.body(fault, job.language))
                    self.gateway.admission.rejected[fault.reason] -= 1  # it is not refused, it waits
                    await asyncio.sleep(min(fault.wait, TICK_S))
                if run.cancelled or self._ends(run):
                    break
        return await self._ask(job, body, run, until)

    async def _ask(self, job: Job, body: bytes, run: Run, until: float, part: Callable[[bytes], None] | None = None) -> Outcome:
        """One request to the scenario, which waits until half of the queue is free.

        Raises:
            Interrupted, Cancelled.
        """
        service = run.service
        while service.batcher.depth >= max(1, service.config.queue_size // 2) and time.monotonic() < until and not (run.cancelled or self._ends(run)):
            await asyncio.sleep(RETRY_S)
        if run.cancelled:
            raise Cancelled
        if self._ends(run) or service.fault:
            raise Interrupted
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def resolve(outcome: Outcome) -> None:
            if not future.done():  # given up
                future.set_result(outcome)

        now = time.monotonic()
        call = Call([])
        call.priority, call.language, call.content_type, call.trace = b"low", job.language, job.content_type, job.trace
        call.rid_header = job.id.encode()
        request = call.request(body, now, (until - now) * 1000, resolve)
        request.key, request.stream = job.routing, part
        run.requests.add(request)
        try:
            service.submit(request)
            outcome = await future
        finally:
            service.cancel(request)  # does nothing where it has ended
            run.ended(request)
        if run.cancelled:
            raise Cancelled
        if outcome.failure in ("stopped", "busy") or (outcome.failure == "died" and part):
            raise Interrupted
        return outcome

    def _ends(self, run: Run) -> bool:
        """Whether nothing more may be asked for a job. What cannot be run again goes on until the gateway's time is up."""
        return self._over or (bool(self._until) and (run.pure or not run.sent))


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
