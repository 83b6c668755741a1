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

A GPU's memory is counted in the same way beside the host's, as its workers report it: what is used there by anyone, against ``[gateway]
device_budget``. It has no bound before the first worker there has said how much there is.
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
from scenarium.gateway.groups import device_of

if TYPE_CHECKING:
    from scenarium.core.devices import DeviceMemory
    from scenarium.core.store import Version
    from scenarium.gateway.generations import Generation
    from scenarium.gateway.services import Service

LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container's limit stands: cgroup 2, cgroup 1."""
SHARE, DEVICE_SHARE = 0.8, 0.9
"""Of a container's limit, and of a GPU's memory; the rest is for what a batch needs for a moment, and for the cache of files."""
WAIT_S = 5.0
BESIDE_S = 1.0
"""How long a new version waits for room beside the old one before it takes the old one's place."""
POLL_S = 0.02
LOOK_S, SLOW_LOOK_S = 1.0, 15.0
"""How often memory is measured with a budget, and without one."""
OVERHEAD, CONTEXT = 24 << 20, 400 << 20
"""Bytes of a worker beside its version's files, before it was measured: on the host, on a GPU."""
KNOWN_SIZES = 1000
"""Versions whose size is remembered after they were served."""
HOST = "host"
"""Beside names of devices: the memory of the machine."""
PING_S = 0.5
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

    def __init__(self, need: Counter[str]) -> None:
        self.need = self.size = need
        """Bytes on the host and on devices: what was foretold, and what counts, while it loads at least as much."""
        self.ready_at: float | None = None


class Memory:
    """The budget of one gateway and what uses it."""

    def __init__(self, budget: int | None, device_budget: int | None, residence_s: float, services: Mapping[str, Service]) -> None:
        self.budget = budget
        self.device_budget = device_budget
        self.residence_s = residence_s
        self.services = services
        self.using: Counter[str] = Counter()
        """Bytes of the whole process tree when it was last measured, and of devices; with what is promised to versions that still load."""
        self.devices: dict[str, int] = {}
        """Bytes that a device has."""
        self.residents: dict[Generation, Resident] = {}
        self.sizes: dict[tuple[str, int, str], Counter[str]] = {}
        """Most bytes of one worker by scenario, version and engine; measured least recently first."""
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
        kept, need = keeps(service), self.need(service, version)
        while not service.batcher.closed and any(self._unknown(device) for device in need):
            await asyncio.sleep(POLL_S)
        if not self.limits or service.batcher.closed:
            return not service.batcher.closed
        if service.current is None and service.state == "idle" and not kept and not wake:
            service.version = version
            return False
        await service.nursery.ready(service.zygote_kind(version))  # what it holds counts too
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
            elif wake or not service.batcher.live:
                service.state = "idle"
                service.batcher.stop("memory")
            else:  # at the start nobody is evicted; who asked meanwhile gets the load that a request of an idle scenario gets
                self.wake(service)
            return False
        return True

    def held(self, name: str) -> int:
        """Bytes of a scenario's workers when they were last measured."""
        return sum(resident.size[HOST] for generation, resident in self.residents.items() if generation.service.name == name)

    @property
    def used(self) -> int:
        """Bytes of the host's memory."""
        return self.using[HOST]

    @property
    def limits(self) -> dict[str, int]:
        """What may be used, where there is a bound."""
        host = {} if self.budget is None else {HOST: self.budget}
        return host | {device: int(total * DEVICE_SHARE) if self.device_budget is None else self.device_budget for device, total in self.devices.items()}

    # ── room ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def need(self, service: Service, version: Version) -> Counter[str]:
        """Bytes that all workers of a version need: as measured, else from its files."""
        config = service.config
        found = self.sizes.get((service.name, version.number, config.engine))
        if found is None:
            unused = ".onnx" if version.manifest.serving(config).engine == "torch" else ".safetensors"
            files = sum(file.size for name, file in version.manifest.files.items() if not name.endswith(unused))
            device = device_of(config, service.zygote_kind(version))
            found = Counter({HOST: files + OVERHEAD} | ({device: files + CONTEXT} if device else {}))
        return Counter({place: config.workers * size for place, size in found.items()})

    async def _room(self, service: Service, need: Counter[str], wake: bool) -> None:
        """Have ``need`` bytes free; the caller starts its workers before it waits for anything else.

        Raises:
            ScenariumError: SCN-4041 (it can never fit), SCN-4042 (nothing can be evicted now, or nobody waits for it any more).
        """
        kept, fresh = keeps(service), service.current is None
        evict = wake or kept or not fresh
        async with self._turn:
            until = time.monotonic() + (WAIT_S if fresh else BESIDE_S)
            doubted = False
            while True:
                if wake and not kept and not service.batcher.live:
                    raise ScenariumError(NOT_NOW, name=service.name)
                await self.look()
                missing = self._over(need)
                if not missing:
                    return
                never = self._never(need)
                if never and not doubted:  # one reads process after process, and what a fork shared that ended meanwhile counts twice
                    doubted = True
                    continue
                if victims := self._victims(service, missing) if evict and not never else []:
                    await self._evict(victims)
                elif (never or time.monotonic() >= until) and service.current is not None:
                    await self._step_aside(service)
                elif never:
                    raise ScenariumError(NEVER, name=service.name, need=text(need[never]), free=text(self._most(never)), budget=text(self.limits[never]))
                elif not evict or time.monotonic() >= until or service.batcher.closed:
                    raise ScenariumError(NOT_NOW, name=service.name)
                else:
                    await self._change(service, missing, min(until, time.monotonic() + LOOK_S))

    async def _change(self, service: Service, missing: Counter[str], until: float) -> None:
        """Wait until others can be evicted, or something else may have changed."""
        while time.monotonic() < until and not service.batcher.closed and not self._victims(service, missing):
            await asyncio.sleep(POLL_S)

    def _unknown(self, device: str) -> bool:
        """Whether the first worker on a device still loads, which will say how much it has."""
        first = [resident.service for resident in self.residents if self.residents[resident].need[device] and not self.residents[resident].ready_at]
        return device not in (HOST, *self.devices) and any(service.state == "starting" for service in first)

    async def _step_aside(self, service: Service) -> None:
        """End the workers of a scenario whose new version has no room beside them: they finish what they hold, and what waits goes on waiting."""
        generation, service.current = service.current, None
        service.state = "starting"
        if generation:
            await asyncio.shield(service.spawn(generation.close(service.patience())))
            service.cache.clear()  # the same version may come back with another engine or plugin

    def _over(self, need: Counter[str]) -> Counter[str]:
        """What is missing, by place, for ``need`` more bytes; empty where there is room."""
        return +Counter({place: self.using[place] + need[place] - limit for place, limit in self.limits.items() if need[place] or not need})

    def _most(self, place: str) -> int:
        """Bytes that could be free in a place if nobody were loaded who need not be."""
        freeable = sum(resident.size[place] for generation, resident in self.residents.items() if not keeps(generation.service))
        return max(0, self.limits[place] - self.using[place] + freeable)

    def _never(self, need: Counter[str]) -> str | None:
        """Where there can never be room. Not known while a version loads, since more is promised to it than it may need."""
        if any(resident.ready_at is None and generation.service.state != "failed" for generation, resident in self.residents.items()):
            return None
        return next((place for place in self.limits if need[place] > self._most(place)), None)

    def _victims(self, asking: Service | None, missing: Counter[str]) -> list[Service]:
        """The least recently used that together hold what is missing; nobody where they do not suffice. Where nobody asks, the budget is
        passed already: then whoever helps goes, however short it was there."""
        loaded_before = time.monotonic() - (self.residence_s if asking else 0.0)
        free = [service for service in self.services.values() if service is not asking and self._evictable(service, loaded_before)]
        found: list[Service] = []
        for service in sorted(free, key=lambda service: service.used):
            size = self._size(service)
            if any(size[place] for place in missing):
                found.append(service)
                missing = missing - size
            if not missing:
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
            logs.event("info", "evicted", scenario=service.name, version=generation.version.number, bytes=self.residents[generation].size[HOST])
            ends.append(service.spawn(generation.close(WAIT_S)))
        await asyncio.shield(asyncio.gather(*ends))

    def _size(self, service: Service) -> Counter[str]:
        return self.residents[service.current].size if service.current in self.residents else Counter()

    # ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def watch(self) -> None:
        """Measure, for ever, and keep to the budget."""
        if self.budget is not None:
            logs.event("info", "memory_budget", bytes=self.budget)
        looks = 0
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), LOOK_S if self.limits else SLOW_LOOK_S)
            self._news.clear()
            looks += 1
            try:
                await (self._keep_to_it(looks) if self.limits else self.look())
            except Exception as fault:  # a fault of our own must not end the watch
                logs.event("error", "gateway_fault", traceback="".join(traceback.format_exception(fault)))

    async def _keep_to_it(self, looks: int) -> None:
        async with self._turn:
            await self.look()
            if over := self._over(Counter()):
                await self._evict(self._victims(None, over))
        for service in list(self.services.values()):
            if service.version is None or service.current is not None:
                continue
            if service.state == "failed" and service.fault and service.wrong is None:
                # It is tried again on demand: at once where there may be room for it now, else after a while.
                fits = not self._never(self.need(service, service.version))
                if fits if service.fault.code == NEVER else looks % 10 == 0:
                    service.state, service.fault = "idle", None
            if service.state == "idle" and keeps(service):
                self._load(service)

    async def look(self) -> None:
        """Measure all processes, and ask the devices' workers; ``using`` afterwards."""
        reports = await self._reports()
        held = await asyncio.to_thread(measure, os.getpid())
        members = Counter(link.process.pid for generation in self.residents for link in generation.links)
        using = Counter({HOST: sum(process.own for process in held.values())})
        for report in reports.values():
            self.devices[report.device] = report.total
            using[report.device] = max(using[report.device], report.total - report.free)
        for generation, resident in self.residents.items():
            size: Counter[str] = Counter()
            for pid in [link.process.pid for link in generation.links if link.process.pid in held]:
                size[HOST] += held[pid].uss // members[pid]  # what a group's process holds belongs to all members alike
                using[HOST] += held[pid].files // members[pid]
                if pid in reports:
                    size[reports[pid].device] += reports[pid].held // members[pid]
            ready = sum(link.serving for link in generation.links)
            if ready < generation.service.config.workers:
                using += resident.need - size
                size |= resident.need
            elif not generation.closing:
                key = generation.service.name, generation.version.number, generation.service.config.engine
                self.sizes[key] = self.sizes.pop(key, Counter()) | Counter({place: part // ready for place, part in size.items()})
                if len(self.sizes) > KNOWN_SIZES:
                    del self.sizes[next(iter(self.sizes))]
            resident.size = size
        self.using = using

    async def _reports(self) -> dict[int, DeviceMemory]:
        """What the workers on devices say of these, by process id."""
        links = {link.process.pid: link for generation in self.residents for link in generation.links if link.serving and link.device_memory}
        await asyncio.gather(*(link.ping(PING_S) for link in links.values()))
        return {pid: link.device_memory for pid, link in links.items() if link.device_memory}


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
