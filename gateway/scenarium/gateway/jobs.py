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
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from scenarium.core.errors import ScenariumError, Words
from scenarium.gateway import logs
from scenarium.gateway.job_file import MOST_RUNS, End, Job, JobFile, New, State, fault_text
from scenarium.gateway.job_run import Cancelled, Interrupted, Run

if TYPE_CHECKING:
    from scenarium.gateway.app import Gateway
    from scenarium.gateway.services import Service

TICK_S = 1.0
SWEEP_S = 60.0

T = TypeVar("T")


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
            run.cancel()
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
        for run in self._runs():
            run.stop()
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
        for run in self._runs():
            run.close()

    def _runs(self) -> Iterator[Run]:
        return (run for runs in self.running.values() for run in runs.values())

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
            while waiting and service and service.version and _takes_jobs(service) and len(runs) < self.config.jobs_at_once:
                ident = waiting.popleft()
                runs[ident] = Run(service, self.gateway.admission, self.config.max_job_bytes)
                task = asyncio.create_task(self._run(ident, runs[ident]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _run(self, ident: str, run: Run) -> None:
        """One job, from when it leaves the queue to what the file says of its end."""
        assert self.file
        name = run.service.name
        run.service.pins += 1
        try:
            begun = await self._written(self.file.begin, ident, run.pure)
            if begun is None:
                return
            job, body = begun
            try:
                end = await run.end_of(job, body)
            except Cancelled:
                return
            except Interrupted:
                if not run.sent or (run.pure and job.runs < MOST_RUNS):
                    if await self._written(self.file.again, ident, run.sent):
                        self.waiting[name].appendleft(ident)
                    return
                end = End(fault=fault_text(ScenariumError("SCN-4125", name=name)), done=run.done, errors=run.errors)
            except Exception as fault:  # a fault of our own must not leave a job without an end
                logs.event("error", "gateway_fault", job=ident, traceback="".join(traceback.format_exception(fault)))
                end = End(fault=fault_text(ScenariumError("SCN-4019", reason=f"{type(fault).__name__}: {fault}")))
            if await self._written(self.file.end, ident, end):
                self._count(name, "failed" if end.fault else "done", ident)
        except ScenariumError as fault:  # the gateway ends, and the file cannot be written: the next one finds the job running
            self._tell(fault)
        finally:
            run.service.pins -= 1
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
                await asyncio.sleep(TICK_S)

    def _count(self, scenario: str, state: State, ident: str) -> None:
        self.ended[scenario, state] += 1
        logs.event("info", "job_ended", scenario=scenario, job=ident, state=state)


def _takes_jobs(service: Service) -> bool:
    """Whether a job of it can be run: it would be put back at once where the scenario is being unloaded."""
    return service.state in ("ready", "idle") and not service.unloaded
