"""The workers of one version: each is started, kept, and started again when it ends, later each time that it fails."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from scenarium.core.errors import ScenariumError, Words
from scenarium.gateway.groups import group_of
from scenarium.gateway.links import WorkerLink, describe_exit

if TYPE_CHECKING:
    from scenarium.core.registry import Plugin
    from scenarium.core.store import Version
    from scenarium.gateway.services import Service

LOAD_LIMIT_S = 600.0
"""A worker that is not ready after this is killed: a plugin may hang on import."""
QUICK_DEATHS, DEATH_WINDOW_S, LONGEST_WAIT_S = 3, 60.0, 30.0


class Generation:
    """The workers of one version."""

    def __init__(self, service: Service, version: Version, plugin: Plugin, threads: int) -> None:
        self.service = service
        self.version = version
        self.plugin = plugin
        self.threads = threads
        self.links: list[WorkerLink] = []
        self._closed = asyncio.Event()
        self.first: asyncio.Future[ScenariumError | None] = asyncio.get_running_loop().create_future()
        """The fault of the first start, or None when a worker is ready."""
        self.served = False
        """Whether a worker was ready once."""
        self.deaths: deque[float] = deque()
        service.memory.started(self)
        self.tasks = [asyncio.create_task(self._keep(index)) for index in range(service.config.workers)]

    @property
    def closing(self) -> bool:
        """Whether it is to end."""
        return self._closed.is_set()

    async def close(self, timeout: float) -> None:
        """Give the workers nothing more; each ends when it holds nothing."""
        self._closed.set()
        for link in list(self.links):
            if link.ready.done():
                self.service.batcher.retire(link)
            else:
                link.process.abandon()  # it still loads, and holds nothing
        _, late = await asyncio.wait(self.tasks, timeout=timeout)
        for link in list(self.links):
            await link.end()
        for task in late:
            task.cancel()
        self.service.memory.ended(self)

    async def _keep(self, index: int) -> None:
        """Have one worker, always: start it, wait for its end, wait longer each time it fails."""
        failures = 0
        while not self.closing:
            fault = await self._live(index)
            if self.closing:
                return
            now = time.monotonic()
            if fault:
                failures += 1
                self.service.failed(self, fault, hopeless=not self.served or failures >= QUICK_DEATHS)
                if not self.first.done():
                    self.first.set_result(fault)
                wait = min(LONGEST_WAIT_S, 0.5 * 2**failures)
            else:
                failures = 0
                self.deaths.append(now)
                while self.deaths[0] < now - DEATH_WINDOW_S:
                    self.deaths.popleft()
                extra = len(self.deaths) - QUICK_DEATHS
                wait = 0.001 if extra <= 0 else min(LONGEST_WAIT_S, 0.1 * 2**extra)
                self.service.stats.restarts += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), wait)

    async def _live(self, index: int) -> ScenariumError | None:
        """One worker's life. Returns why it never became ready, or None after a life that served."""
        service = self.service
        try:
            kind = service.zygote_kind(self.version)
            group = group_of(service.config, kind)
            process = await (service.nursery.groups.join(group, index, kind) if group else service.nursery.start(kind))
        except OSError as fault:
            return cannot_start(service.name, str(fault), str(fault))
        link = WorkerLink(service, self.version.number, process, service.nursery)
        link.seat = index
        self.links.append(link)
        try:
            await link.open(service.hello(self.version, self.plugin, self.threads))
            try:
                told = await asyncio.wait_for(asyncio.shield(link.ready), LOAD_LIMIT_S)
            except (TimeoutError, ConnectionError) as reason:
                await link.end()
                if isinstance(reason, TimeoutError):
                    return cannot_start(
                        service.name, f"it was not ready after {LOAD_LIMIT_S:.0f} s", f"{LOAD_LIMIT_S:.0f} 秒后仍未就绪", service.last_line(process.pid)
                    )
                return cannot_start(service.name, *describe_exit(await self._status(link)), service.last_line(process.pid))
            if told:
                await link.drain(1.0)
                return Refused(service.name, told)
            if not self.closing:
                self.served = True
                service.joined(self, link)
                if not self.first.done():
                    self.first.set_result(None)
            else:
                await link.drain(1.0)
            await asyncio.shield(link.ended)
            if not self.closing:
                service.spawn(self._report(link))
            return None
        finally:
            self.links.remove(link)

    async def _report(self, link: WorkerLink) -> None:
        english, chinese = describe_exit(await self._status(link))
        fault = cannot_start(self.service.name, english, chinese, self.service.last_line(link.process.pid))
        self.service.note_fault(fault, "worker_died", pid=link.process.pid)

    async def _status(self, link: WorkerLink) -> int | None:
        """The exit status, for which a zygote's word may be on its way."""
        for _ in range(10):
            if link.status is not None or link.process.pid in link.nursery.exits:
                break
            await asyncio.sleep(0.01)
        return link.nursery.exits.get(link.process.pid, link.status)


class Refused(ScenariumError):
    """The fault that a worker reported, in both languages."""

    def __init__(self, name: str, told: dict[str, Any]) -> None:
        english, chinese = told["en"], told["zh"]
        reason, remedy = Words(english["title"], chinese["title"]), Words(english["hint"], chinese["hint"])
        super().__init__("SCN-4010", name=name, reason=reason, remedy=remedy)
        self.cause = str(told["code"])


def cannot_start(name: str, english: str, chinese: str, last: str = "") -> ScenariumError:
    """The error of a worker that does not serve; ``last`` is what it printed last."""
    reason = Words(f"{english}{f' ({last})' if last else ''}.", f"{chinese}{f'（{last}）' if last else ''}。")
    remedy = Words(f"See 'scenarium logs {name}'.", f"请查看 'scenarium logs {name}'。")
    return ScenariumError("SCN-4010", name=name, reason=reason, remedy=remedy)
