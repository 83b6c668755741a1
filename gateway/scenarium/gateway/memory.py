"""More scenarios than memory: which of them have workers, and which are loaded when a request asks for them.

``[gateway] memory_budget`` bounds the memory of the whole process tree: gateway, zygotes, workers, and what these started. Counted is what the
system cannot take back, each shared page once, and the pages of files (weights) that one worker alone maps; not the pages of libraries, which
belong to the cache of files and are shared with processes of others.

A scenario without workers is *idle*: its version is known, and the first request loads it while all that come meanwhile wait in its queue. For a
load that needs room the least recently used scenarios are evicted, by these rules:

- What has a request that waits or runs, an open stream, a job, or a version on its way (``Service.pins``) is never evicted, nor is what is
  kept warm (``serve.keep_warm``, ``serve.required``).
- What was loaded stays for ``[gateway] residence_s``, so that two scenarios that do not fit beside each other cannot spend their time loading.
- Nobody is evicted in vain: only where that makes enough room. Else the load waits up to ``WAIT_S`` for others to become free, and its
  requests are refused then (503). What can never fit says so at once. Loads look for room one after another, in the order in which they
  came, and meanwhile a request's own deadline counts.

An eviction is one step of the event loop, so no request falls between: one that comes before it prevents it, one after it loads anew.
What a version needs is measured while it is loaded; before its first load it is taken from the sizes of its files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scenarium.core.errors import ScenariumError
from scenarium.gateway import logs

if TYPE_CHECKING:
    from scenarium.core.store import Version
    from scenarium.gateway.generations import Generation
    from scenarium.gateway.services import Service

LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container's limit stands: cgroup 2, cgroup 1."""
SHARE = 0.8
"""Of a container's limit; the rest is for what a batch needs for a moment, and for the cache of files."""
WAIT_S = 5.0
BESIDE_S = 1.0
"""How long a new version waits for room beside the old one before it takes the old one's place."""
POLL_S = 0.02
LOOK_S, SLOW_LOOK_S = 1.0, 15.0
"""How often memory is measured with a budget, and without one."""
OVERHEAD = 24 << 20
"""Bytes of a worker beside its version's files, before it was measured."""
NEVER, NOT_NOW = "SCN-4041", "SCN-4042"


class Held(NamedTuple):
    """Memory of one process in bytes."""

    own: int
    """Its part of the pages that belong to no file: a page that a fork shares counts by its share."""
    files: int
    """Pages of files that it, or one process that it started, maps alone."""
    uss: int
    """Unique set size, of it and all that it started: what comes back when they end."""


class Resident:
    """What is known of a generation that has workers."""

    __slots__ = ("need", "ready_at", "size")

    def __init__(self, need: int) -> None:
        self.need = self.size = need
        """Bytes: what was foretold, and what counts; while it loads the larger of what it was said to need and what it has."""
        self.ready_at: float | None = None


class Memory:
    """The budget of one gateway and what uses it."""

    def __init__(self, budget: int | None, residence_s: float, services: Mapping[str, Service]) -> None:
        self.budget = budget
        self.residence_s = residence_s
        self.services = services
        self.used = 0
        """Bytes of the whole process tree when it was last measured, and what is promised to versions that still load."""
        self.residents: dict[Generation, Resident] = {}
        self.sizes: dict[tuple[str, int, str], int] = {}
        """Most bytes of one worker by scenario, version and engine."""
        self.evictions: Counter[str] = Counter()
        self.loads: Counter[str] = Counter()
        """Loads that a request asked for."""
        self._turn = asyncio.Lock()
        """Who holds it looks for room; the others wait in the order in which they came."""
        self._news = asyncio.Event()

    # ── what services and generations tell ────────────────────────────────────────────────────────────────────────────

    def started(self, generation: Generation) -> None:
        """Workers of a generation are being started; what they need is spoken for from now on."""
        self.residents[generation] = Resident(self.need(generation.service, generation.version))

    def joined(self, generation: Generation) -> None:
        """A worker is ready."""
        resident = self.residents.get(generation)
        if resident and resident.ready_at is None:
            resident.ready_at = time.monotonic()
        self._news.set()

    def ended(self, generation: Generation) -> None:
        """All its workers are gone."""
        self.residents.pop(generation, None)

    def wake(self, service: Service) -> None:
        """Load an idle scenario; whoever asks meanwhile waits in its queue."""
        self.loads[service.name] += 1
        self._load(service)

    def _load(self, service: Service) -> None:
        assert service.version is not None
        service.state = "starting"
        service.spawn(service.load(service.version.number, wake=True))

    async def admit(self, service: Service, version: Version, wake: bool) -> bool:
        """Whether workers of ``version`` may start now. Where they may not, the service is idle, or failed where it can never fit."""
        if self.budget is None or service.batcher.closed:
            return not service.batcher.closed
        kept = keeps(service)
        if service.current is None and service.state == "idle" and not kept and not wake:
            service.version = version
            return False
        await service.nursery.ready(service.zygote_kind(version))  # what it holds counts too
        need = self.need(service, version)
        try:
            await self._room(service, need, wake)
        except ScenariumError as fault:
            service.version = version
            if service.batcher.closed:
                return False
            if fault.code == NEVER:
                service.note_fault(fault, "version_refused")
                service.state, service.fault = "failed", fault
                service.batcher.stop()
            else:
                service.state = "idle"
                service.batcher.stop("memory")
            return False
        return True

    def held(self, name: str) -> int:
        """Bytes of a scenario's workers when they were last measured."""
        return sum(resident.size for generation, resident in self.residents.items() if generation.service.name == name)

    # ── room ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def need(self, service: Service, version: Version) -> int:
        """Bytes that all workers of a version need: as measured, else from its files."""
        engine = service.config.engine
        unused = ".safetensors" if engine == "onnx" else ".onnx"
        files = sum(file.size for name, file in version.manifest.files.items() if not name.endswith(unused))
        return service.config.workers * self.sizes.get((service.name, version.number, engine), files + OVERHEAD)

    async def _room(self, service: Service, need: int, wake: bool) -> None:
        """Have ``need`` bytes free; the caller starts its workers before it waits for anything else.

        Raises:
            ScenariumError: SCN-4041 (it can never fit), SCN-4042 (nothing can be evicted now, or nobody waits for it any more).
        """
        kept, fresh = keeps(service), service.current is None
        evict = wake or kept or not fresh
        async with self._turn:
            until = time.monotonic() + (WAIT_S if fresh else BESIDE_S)
            while True:
                if wake and not kept and not service.batcher.live:
                    raise ScenariumError(NOT_NOW, name=service.name)
                missing = need - self._budget + await self.look()
                if missing <= 0:
                    return
                never = missing > sum(resident.size for other, resident in self.residents.items() if not keeps(other.service))
                if victims := self._victims(service, missing) if evict and not never else []:
                    await self._evict(victims)
                elif (never or time.monotonic() >= until) and service.current is not None:
                    await self._step_aside(service)
                elif never:
                    raise ScenariumError(NEVER, name=service.name, need=text(need), free=text(self._most(service)), budget=text(self._budget))
                elif not evict or time.monotonic() >= until or service.batcher.closed:
                    raise ScenariumError(NOT_NOW, name=service.name)
                else:
                    await self._change(service, missing, min(until, time.monotonic() + LOOK_S))

    async def _change(self, service: Service, missing: int, until: float) -> None:
        """Wait until others can be evicted, or something else may have changed."""
        while time.monotonic() < until and not service.batcher.closed and not self._victims(service, missing):
            await asyncio.sleep(POLL_S)

    async def _step_aside(self, service: Service) -> None:
        """End the workers of a scenario whose new version has no room beside them: they finish what they hold, and what waits goes on waiting."""
        generation, service.current = service.current, None
        service.state = "starting"
        if generation:
            await asyncio.shield(service.spawn(generation.close(service.patience())))

    def _most(self, service: Service) -> int:
        """Bytes that could be free for a scenario if nobody else were loaded who need not be."""
        return max(0, self._budget - self.used + sum(r.size for generation, r in self.residents.items() if not keeps(generation.service)))

    def _victims(self, asking: Service | None, missing: int) -> list[Service]:
        """The least recently used that together hold ``missing`` bytes; nobody where they do not suffice. Where nobody asks, the budget is
        passed already: then whoever helps goes, however short it was there."""
        loaded_before = time.monotonic() - (self.residence_s if asking else 0.0)
        free = [service for service in self.services.values() if service is not asking and self._evictable(service, loaded_before)]
        found: list[Service] = []
        for service in sorted(free, key=lambda service: service.used):
            found.append(service)
            missing -= self._size(service)
            if missing <= 0:
                return found
        return [] if asking else found

    def _evictable(self, service: Service, loaded_before: float) -> bool:
        resident = self.residents.get(service.current) if service.current else None
        if resident is None or keeps(service) or service.pins or service.loading or service.batcher.busy:
            return False
        return service.state == "failed" or (service.state == "ready" and resident.ready_at is not None and resident.ready_at <= loaded_before)

    async def _evict(self, victims: Iterable[Service]) -> None:
        """Make them idle at once, and wait until their memory is back."""
        ends = []
        for service in victims:
            generation, service.current = service.current, None
            assert generation is not None
            service.state, service.fault = "idle", None
            self.evictions[service.name] += 1
            logs.event("info", "evicted", scenario=service.name, version=generation.version.number, bytes=self.residents[generation].size)
            ends.append(service.spawn(generation.close(WAIT_S)))
        await asyncio.shield(asyncio.gather(*ends))

    def _size(self, service: Service) -> int:
        return self.residents[service.current].size if service.current in self.residents else 0

    @property
    def _budget(self) -> int:
        assert self.budget is not None
        return self.budget

    # ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def watch(self) -> None:
        """Measure, for ever, and keep to the budget."""
        if self.budget is not None:
            logs.event("info", "memory_budget", bytes=self.budget)
        looks = 0
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), SLOW_LOOK_S if self.budget is None else LOOK_S)
            self._news.clear()
            looks += 1
            try:
                await (self.look() if self.budget is None else self._keep_to_it(looks))
            except Exception as fault:  # a fault of our own must not end the watch
                logs.event("error", "gateway_fault", traceback="".join(traceback.format_exception(fault)))

    async def _keep_to_it(self, looks: int) -> None:
        async with self._turn:
            over = await self.look() - self._budget
            if over > 0:
                await self._evict(self._victims(None, over))
        for service in list(self.services.values()):
            if service.version is None or service.current is not None:
                continue
            if service.state == "failed" and service.fault and service.wrong is None:
                # It is tried again on demand: at once where there may be room for it now, else after a while.
                fits = self.need(service, service.version) <= self._most(service)
                if fits if service.fault.code == NEVER else looks % 10 == 0:
                    service.state, service.fault = "idle", None
            if service.state == "idle" and keeps(service):
                self._load(service)

    async def look(self) -> int:
        """Measure all processes; ``used`` afterwards."""
        held = await asyncio.to_thread(measure, os.getpid())
        members = Counter(link.process.pid for generation in self.residents for link in generation.links)
        used = sum(process.own for process in held.values())
        for generation, resident in self.residents.items():
            ready = sum(link.serving for link in generation.links)
            pids = [link.process.pid for link in generation.links if link.process.pid in held]
            resident.size = sum(held[pid].uss // members[pid] for pid in pids)  # what a group's process holds belongs to all members alike
            used += sum(held[pid].files // members[pid] for pid in pids)
            if ready < generation.service.config.workers:
                used += max(0, resident.need - resident.size)
                resident.size = max(resident.need, resident.size)
            elif not generation.closing:
                key = generation.service.name, generation.version.number, generation.service.config.engine
                self.sizes[key] = max(self.sizes.get(key, 0), resident.size // ready)
        self.used = used
        return used


def keeps(service: Service) -> bool:
    """Whether a scenario always has workers."""
    return service.config.keep_warm or service.config.required


def budget_of(setting: int | None) -> int | None:
    """The budget in bytes: the setting, else a share of the container's limit, else none."""
    if setting is not None:
        return setting
    for path in LIMITS:
        with contextlib.suppress(OSError, ValueError):
            limit = int(path.read_text())  # "max" where there is none
            if limit < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
                return int(limit * SHARE)
    return None


def measure(pid: int) -> dict[int, Held]:
    """Memory of a process and all that it started, by process id; see proc(5). What ends meanwhile counts as nothing."""
    found: dict[int, Held] = {}
    started = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            started += [int(child) for child in task.read_text().split()]
    for child in started:
        found |= measure(child)
    values = dict.fromkeys(("Pss_Anon", "Pss_Shmem", "Private_Clean", "Private_Dirty"), 0)
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in values:
                values[name] = int(rest.split()[0]) * 1024
    files = values["Private_Clean"] + sum(found[child].files for child in started)
    uss = values["Private_Clean"] + values["Private_Dirty"] + sum(found[child].uss for child in started)
    return found | {pid: Held(values["Pss_Anon"] + values["Pss_Shmem"], files, uss)}


def text(size: int) -> str:
    """A size for people."""
    return f"{size / 2**20:.0f} MiB"
