"""One served scenario: its queue, the workers of its current version, and what happens when one dies or a version changes."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from scenarium.core.config import ServeConfig
from scenarium.core.errors import ScenariumError
from scenarium.core.registry import Plugin, Registry
from scenarium.core.store import Store, Version
from scenarium.core.workers import frames
from scenarium.gateway import cache, logs
from scenarium.gateway.batching import Batcher
from scenarium.gateway.generations import Generation, cannot_start
from scenarium.gateway.links import WorkerLink
from scenarium.gateway.memory import Memory
from scenarium.gateway.metrics import Stats
from scenarium.gateway.requests import Failure, Outcome, Request
from scenarium.gateway.zygotes import Nursery, zygote_kind

if TYPE_CHECKING:
    from scenarium.gateway.rollouts import Trial

State = Literal["untrained", "starting", "ready", "idle", "failed", "stopped"]
STATES: tuple[State, ...] = ("untrained", "starting", "ready", "idle", "failed", "stopped")

NOT_TRAINED = ("SCN-4004", "SCN-5010")
"""Nothing is trained yet, or nothing reached its floor: no fault, but nothing to serve."""

_OWN = frozenset(("level", "what", "at", "event"))
"""Members of a log line that a worker's entry cannot replace."""
TICK_S = 0.01
KEPT_LINES = 1000


class Service:
    """One scenario as the gateway serves it."""

    def __init__(
        self,
        name: str,
        plugin: str,
        config: ServeConfig,
        registry: Registry,
        store: Store,
        nursery: Nursery,
        memory: Memory,
        wrong: ScenariumError | None = None,
    ) -> None:
        self.name = name
        self.plugin = plugin
        self.config = config
        self.registry = registry
        self.store = store
        self.nursery = nursery
        self.memory = memory
        self.share = 1
        """Threads of a worker where the settings name none."""
        self.batcher = Batcher(config.queue_size, config.max_delay_ms / 1000)
        self.stats = Stats()
        self.batcher.batch_sizes = self.stats.batch
        self.batcher.wake = self._wake
        self.cache = cache.Cache(self.submit, self.cancel, time.monotonic)
        self.cache.configure(config)
        self.queued: Callable[[Request], None] | None = None
        """Told of the wait in the queue, where traces are sent."""
        self.wrong = wrong
        """What is wrong with its settings."""
        self.state: State = "failed" if wrong else "starting"
        self.fault: ScenariumError | None = wrong
        """Why it cannot serve now."""
        self.last_fault: dict[str, Any] | None = None
        self.current: Generation | None = None
        self.version: Version | None = None
        """The version that is served, or would be."""
        self.trial: Trial | None = None
        """The rollout that runs beside."""
        self.tried: int | None = None
        """Number of the version that was last loaded, or refused."""
        self.lines: deque[dict[str, Any]] = deque(maxlen=KEPT_LINES)
        """What its workers printed lately."""
        self.used = 0.0
        """When a request came last (``time.monotonic``)."""
        self.unloaded = False
        """Whether an operator put it away: it has no workers until it is loaded again."""
        self.pins = 0
        """How many hold its workers where no request of theirs may be open: it is not evicted."""
        self._lines = 0
        self._ticking: asyncio.TimerHandle | None = None
        self._loading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    # ── requests ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def route_key(self) -> str | None:
        """JSON pointer of the routing key, where keys matter: with several workers, or to the worker itself."""
        return self.version.manifest.route_key if self.version else None

    @property
    def served(self) -> int | None:
        """Number of the version that is served, or would be."""
        return self.version.number if self.version else None

    @property
    def engine(self) -> str:
        """What runs the forward: the setting, or an optimised version's own."""
        return (self.version.manifest.serving(self.config) if self.version else self.config).engine

    def submit(self, request: Request) -> None:
        """Take a request in. It ends by its ``resolve``."""
        if self.unloaded:
            request.done = True
            request.resolve(Outcome(0, b"", failure="stopped"))
            return
        if self.trial is None or not self.trial.takes(request):
            self.enqueue(request, request.entered)

    def enqueue(self, request: Request, now: float) -> None:
        """Take a request in for this service's own workers."""
        self.batcher.submit(request, now)
        self.used = request.entered
        if self.state == "idle":
            self.memory.wake(self)
        self._look_after(request)

    def look_up(self, request: Request, digest: bytes) -> cache.Found:
        """Take a request in whose answer may be kept. It ends by its ``resolve``."""
        found = self.cache.submit(request, self.version_for(request), digest)
        self._look_after(request)  # its computation may be a candidate's, whose own tick knows nothing of who waits for it
        return found

    def _look_after(self, request: Request) -> None:
        if self._ticking is None and not request.done:
            self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def cancel(self, request: Request, failure: Failure = "cancelled") -> None:
        """Nobody waits for this request any more."""
        if request.home:
            request.home.cancel(request, failure)

    def version_for(self, request: Request) -> int:
        """The version whose workers a request would go to now; 0: none. ``Outcome.version`` is the one that answered."""
        return self.trial.version if self.trial and self.trial.chosen(request) else self.served or 0

    def sides(self) -> list[Service]:
        """Itself, and the candidate of its rollout."""
        return [self, self.trial.candidate] if self.trial else [self]

    def _tick(self) -> None:
        now = time.monotonic()
        self.batcher.sweep(now)
        self.cache.sweep()
        for request in (*self.batcher.requests(), *self.cache.requests()):
            if request.watch and now - request.entered >= TICK_S:
                request.watch()
                request.watch = None
        self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick) if self.batcher.busy or self.cache.waiting else None

    @property
    def ready(self) -> bool:
        """Whether a worker can answer: one is there, and what it last answered to its own sample was an answer."""
        return self.state == "ready" and any(link.serving and link.well for link in self.links())

    def links(self) -> list[WorkerLink]:
        """The current version's workers."""
        return self.current.links if self.current else []

    # ── what the workers tell ─────────────────────────────────────────────────────────────────────────────────────────

    def answered(self, link: WorkerLink, answer: frames.Answer) -> None:
        rid, status, queue, preprocess, forward, postprocess, body = answer
        failure: Failure | None = "deadline" if status == 504 and not body else None  # as the worker's clock has it
        if not self.batcher.answered(link, rid, Outcome(status, body, link.version, (queue, preprocess, forward, postprocess), failure)):
            link.probed(rid, status)

    def pump(self) -> None:
        self.batcher.pump(time.monotonic())

    def _wake(self, when: float) -> None:
        # The loop's timer is rounded to a millisecond and may come early; ``when`` itself must have come for the batcher.
        asyncio.get_running_loop().call_later(when - time.monotonic(), lambda: self.batcher.pump(max(when, time.monotonic())))

    def part(self, link: WorkerLink, rid: int, chunk: bytes) -> None:
        self.batcher.part(link, rid, chunk)

    def logged(self, link: WorkerLink, rid: int, entry: dict[str, Any]) -> None:
        request = self.batcher.find(link, rid)
        about = {"scenario": self.name, **(request.about() if request else {})}
        logs.event("info", "payload", **about, **{key: value for key, value in entry.items() if key not in about and key not in _OWN})

    def called(self, calls: Mapping[str, int], breaker: str) -> str:
        return self.stats.upstream.called(calls, breaker)

    def said(self, link: WorkerLink, line: str) -> None:
        self._lines += 1
        self.lines.append({"number": self._lines, "at": datetime.now(UTC).isoformat(timespec="milliseconds"), "pid": link.process.pid, "line": line})
        logs.event("info", "worker_output", scenario=self.name, pid=link.process.pid, line=line)

    def released(self, link: WorkerLink) -> None:
        self.spawn(link.drain(5.0))

    def died(self, link: WorkerLink) -> None:
        if self.state == "ready" and not any(each.serving for each in self.links()):
            self.state = "starting"
        self.batcher.lost(link, time.monotonic())

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something beside."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ── versions ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def loading(self) -> bool:
        """Whether a version is on its way."""
        return self._loading.locked()

    async def load(self, number: int | None, wake: bool = False) -> None:
        """Serve ``number`` (None: nothing is trained), beside the old version until a worker of the new one is ready.
        ``wake``: an idle scenario is to have workers; else it stays idle, and knows the new version."""
        async with self._loading:
            if self.unloaded:
                return
            if number == self.tried and number is not None and not wake:
                return
            self.tried = number
            try:
                plugin = self.registry.plugin(self.name)
                if plugin.error:
                    raise plugin.error
                # Without a number the store says why there is none.
                version = await asyncio.to_thread(self.store.open, self.name, *(() if number is None else (number,)))
                cache.check(self.name, self.config, version.manifest)
            except ScenariumError as fault:
                self._refuse(fault)
                return
            except Exception as fault:
                self._refuse(cannot_start(self.name, f"{type(fault).__name__}: {fault}", f"{type(fault).__name__}: {fault}"))
                return
            if await self.memory.admit(self, version, wake):
                await self._flip(version, plugin)

    async def unload(self) -> None:
        """Have no workers until ``restore``. What was accepted is answered first; nothing more is."""
        self.unloaded = True
        until = time.monotonic() + self.patience()
        while self.batcher.live and time.monotonic() < until:
            await asyncio.sleep(0.02)
        async with self._loading:
            if not self.unloaded:
                return
            generation, self.current = self.current, None
            self.state, self.fault = "stopped", ScenariumError("SCN-4208", name=self.name)
            self.batcher.stop()
        logs.event("info", "unloaded", scenario=self.name, version=self.served)
        if generation:
            await generation.close(5.0)

    async def restore(self, number: int | None) -> None:
        """Have workers of ``number``, whether it was unloaded, idle or loaded; returns before they are ready."""
        unloaded, self.unloaded = self.unloaded, False
        if self.current is not None:
            return
        if unloaded:
            self.state, self.fault = "starting", None
        await self.load(number, wake=True)

    def configure(self, config: ServeConfig) -> None:
        """Take over changed settings, as far as no worker knows them; for the others ``reload``."""
        self.config = config
        self.batcher.queue_size, self.batcher.max_delay = config.queue_size, config.max_delay_ms / 1000
        self.cache.configure(config)
        if self.trial:
            self.trial.candidate.configure(config)

    async def reload(self, number: int) -> None:
        """Load ``number`` anew though it is served already: the plugin's source or the workers' settings changed."""
        self.tried = None
        self.cache.clear()  # of what has no workers; while old ones answer on, their end clears it again
        if self.trial:
            self.trial.reload()
        await self.load(number)

    async def _flip(self, version: Version, plugin: Plugin) -> None:
        old = self.current
        generation = Generation(self, version, plugin, self.config.threads or self.share)
        if old is None:
            self.current, self.version = generation, version
            self.state = "starting"
            self.fault = None
        logs.event("info", "version_loading", scenario=self.name, version=version.number)
        if old is None:
            return
        serves = False
        try:
            serves = await generation.first is None and not self.batcher.closed
        finally:
            if not serves:  # it cannot, or the scenario was removed meanwhile, or the gateway ends
                await asyncio.shield(self.spawn(generation.close(0.0)))
        if not serves:
            return
        self.current, self.version = generation, version
        self.state, self.fault = "ready", None
        for link in generation.links:
            if link.serving:
                self.batcher.add(link, time.monotonic())
        self.spawn(old.close(self.patience()))
        asyncio.get_running_loop().call_soon(self.cache.clear)  # right after the old workers were given their last
        logs.event("info", "version_served", scenario=self.name, version=version.number, before=old.version.number)

    def patience(self) -> float:
        """Seconds until the last deadline of what is open has passed; a job's may be far."""
        now = time.monotonic()
        return max((request.deadline for request in self.batcher.requests()), default=now) - now + 5

    def _refuse(self, fault: ScenariumError) -> None:
        """Nothing new can be served; what is served goes on."""
        self.note_fault(fault, "version_refused")
        if self.current is None:
            self.fault = fault
            self.state = "untrained" if fault.code in NOT_TRAINED else "failed"
            self.batcher.stop()

    def joined(self, generation: Generation, link: WorkerLink) -> None:
        """A worker is ready."""
        self.memory.joined(generation)
        logs.event("info", "worker_ready", scenario=self.name, version=link.version, pid=link.process.pid, load_ms=link.load_ms)
        if generation is self.current and link.serving:  # it may have died since it said so
            self.state, self.fault = "ready", None
            self.batcher.add(link, time.monotonic())

    def failed(self, generation: Generation, fault: ScenariumError, hopeless: bool) -> None:
        """A worker could not start. What waits goes on waiting for the next one, unless it is ``hopeless``."""
        self.note_fault(fault, "worker_failed", version=generation.version.number)
        if hopeless and generation is self.current and self.state != "ready":
            self.state, self.fault = "failed", fault
            self.batcher.stop()

    def note_fault(self, fault: ScenariumError, what: str, **values: Any) -> None:
        """Keep and log the last fault."""
        if fault.code in NOT_TRAINED:
            return
        self.last_fault = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "event": what, "en": fault.problem("en"), "zh": fault.problem("zh")}
        logs.event("error", what, scenario=self.name, code=fault.code, title=fault.title(), hint=fault.hint(), **values)

    def last_line(self, pid: int) -> str:
        """What a worker printed last."""
        return next((each["line"] for each in reversed(self.lines) if each["pid"] == pid and each["line"].strip()), "")

    def zygote_kind(self, version: Version) -> str:
        """``torch`` where the torch engine or a preloaded module needs it, else ``bare``."""
        return zygote_kind(self.config, version.manifest)

    def hello(self, version: Version, plugin: Plugin, threads: int) -> dict[str, Any]:
        """What a worker must know."""
        return {
            "proto": frames.PROTO,
            "scenario": self.name,
            "plugin": {field: getattr(plugin, field) for field in ("name", "target", "distribution", "version", "hook_api")},
            "serve": [
                [key[2:], value, [origin.kind, origin.name, origin.line]]
                for key, (value, origin) in self.registry.settings.flat.items()
                if key[:3] == ("scenarios", self.name, "serve")
            ],
            "manifest": version.manifest.model_dump(mode="json"),
            "folder": str(version.folder),
            "device": self.config.device,
            "threads": threads,
            "tracing": self.nursery.tracing,
        }

    async def close(self, timeout: float) -> None:
        """Let open requests finish, then end the workers."""
        until = time.monotonic() + timeout
        if self.trial:
            await self.trial.close(timeout)
        while self.batcher.live and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self.state, self.fault = "stopped", ScenariumError("SCN-4013")
        self.batcher.close()
        self.cache.sweep()  # what was to be begun anew ends too
        if self.current:
            await self.current.close(max(0.5, until - time.monotonic()))
        await asyncio.gather(*self._tasks)
        if self._ticking:
            self._ticking.cancel()
