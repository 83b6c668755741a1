"""The ASGI app: hot routes, cold routes, and the gateway's life around them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount

from scenarium.core import devices
from scenarium.core.config import GatewayConfig, ServeConfig
from scenarium.core.errors import ScenariumError
from scenarium.core.registry import Registry
from scenarium.core.rollouts import Standing, standing
from scenarium.core.store import Store
from scenarium.gateway import cold, logs, reloading, watchdog
from scenarium.gateway.access_log import AccessLog
from scenarium.gateway.admission import Admission
from scenarium.gateway.audit import Audit
from scenarium.gateway.bulk import Bulk
from scenarium.gateway.job_routes import Submit
from scenarium.gateway.jobs import Jobs
from scenarium.gateway.kserve import rpc
from scenarium.gateway.kserve.http import V2
from scenarium.gateway.live import Live
from scenarium.gateway.memory import Memory, budget_of, keeps
from scenarium.gateway.openai.http import ASKED, V1
from scenarium.gateway.predict import Predict
from scenarium.gateway.rollouts import Rollouts
from scenarium.gateway.services import Service
from scenarium.gateway.stream import Stream
from scenarium.gateway.tracing import Tracing, open_tracing
from scenarium.gateway.zygotes import Nursery, zygote_kind

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "/scenarios/"
MODELS = "/v2/models/"
POLL_S = 1.0
"""How often aliases are read: a promoted version is noticed within 5 s even where the store is slow."""


class Gateway:
    """All scenarios of a registry, served from a store."""

    def __init__(self, registry: Registry, store: Store, config: GatewayConfig) -> None:
        self.registry = registry
        self.store = store
        self.config = config
        self.services: dict[str, Service] = {}
        self.memory = Memory(budget_of(config.memory_budget), config.device_budget, config.residence_s, self.services)
        self.admission = Admission(config, registry.settings)
        self.audit: Audit | None = None
        self.access_log: AccessLog | None = None
        self.tracing: Tracing | None = None
        self.opened = False
        self.jobs = Jobs(self)
        self.rollouts = Rollouts(self.services)
        self.drain_s = config.drain_s
        self.again: Callable[[], Registry] | None = None
        """Reads the settings and what is installed anew."""
        self.started = False
        self.draining = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reloading = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()

    def service(self, name: str) -> Service:
        """The scenario's service.

        Raises:
            ScenariumError: SCN-1001 (no such scenario), SCN-1002 and SCN-1006 (its plugin cannot be used).
        """
        found = self.services.get(name)
        if found is None:
            self.registry.plugin(name)  # raises with the nearest names
            raise ScenariumError("SCN-1001", name=name, nearest=", ".join(sorted(self.services)) or "-")
        return found

    def open(self) -> None:
        """Open what decides whether a gateway may start at all: keys, audit log, what masks the access log, traces. Doing it again
        changes nothing.

        Raises:
            ScenariumError: SCN-1101, SCN-1102 (keys), SCN-1105 (audit log), SCN-1002 (an extension), SCN-1120 (traces).
        """
        self.admission.open()
        if self.opened:
            return
        if self.config.audit:
            self.audit = Audit(self.registry.settings.path_of(self.config.audit, "gateway", "audit"), self.config.audit_required)
        if self.config.access_log:
            self.access_log = AccessLog(self.config.access_log, self.registry)
        self.tracing = open_tracing(self.config.tracing, os.environ)
        self.opened = True

    def around(self, app: App) -> ASGIApp:
        """The app within what watches its requests; itself where nothing does."""
        served: ASGIApp = app
        for watcher in (self.access_log, self.tracing):
            if watcher:
                served = watcher.around(served, app)
        return served

    async def start(self) -> None:
        """Start every scenario that has a version; returns before they are ready.

        Raises:
            ScenariumError: SCN-1101, SCN-1102 (keys), SCN-1105 (audit log).
        """
        await asyncio.to_thread(self.open)
        self.nursery = Nursery(tracing=self.tracing is not None)
        for name, plugin in self.registry.names().items():
            self.services[name] = self.make_service(name, plugin)
        numbers = await asyncio.to_thread(self._numbers)
        busy = sum(service.config.workers for name, service in self.services.items() if numbers[name] is not None)
        for service in self.services.values():
            service.share = devices.share(busy)
        await asyncio.to_thread(self._preload, numbers)
        self.spawn(self._load(numbers))
        self.spawn(self._poll())
        self.spawn(watchdog.watch(self.services))
        self.spawn(self.memory.watch())
        self.spawn(self.admission.follow())
        self.spawn(self.jobs.follow())
        self.started = True

    def hurry(self) -> None:
        """Wait for nothing any more: whatever is open ends now with an error."""
        self.drain_s = 0.0
        for service in self.services.values():
            for side in reversed(service.sides()):  # what production may run again is handed to it
                side.batcher.stop()

    async def stop(self) -> None:
        """Finish what is open, then end every worker and zygote."""
        self.draining = True
        for task in list(self._tasks):
            task.cancel()
        await self.jobs.close()
        await asyncio.gather(*(service.close(self.drain_s) for service in self.services.values()), *self._leaving)
        await self.nursery.close()
        await self.admission.close()
        if self.audit:
            await asyncio.to_thread(self.audit.close)
        if self.tracing:
            await asyncio.to_thread(self.tracing.close)

    def make_service(self, name: str, plugin: str) -> Service:
        """The service; settings that are wrong make this scenario fail and no other."""
        wrong = None
        try:
            config = self.registry.serve_config(name)
        except ScenariumError as fault:
            config, wrong = ServeConfig(), fault
        service = Service(name, plugin, config, self.registry, self.store, self.nursery, self.memory, wrong)
        if self.tracing:
            service.queued = self.tracing.queued
        return service

    def spawn(self, work: Any) -> None:
        """Run something beside, until the gateway stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _numbers(self) -> dict[str, int | None]:
        """The production version of each scenario."""
        return {name: self.number(name) for name in list(self.services)}

    def number(self, name: str) -> int | None:
        """The production version of a scenario; None too where its alias file is damaged, which ``load`` tells."""
        return self._standing(name).production

    def _standing(self, name: str) -> Standing:
        try:
            return standing(self.store, name)
        except ScenariumError:
            return Standing(None, None)

    async def reload(self) -> dict[str, list[str]]:
        """Read the settings again and serve what they say; see ``reloading``.

        Raises:
            ScenariumError: SCN-4030 (this gateway was not started from settings), or what is wrong with the settings.
        """
        if self.again is None:
            raise ScenariumError("SCN-4030")
        async with self._reloading:
            return await reloading.reload(self, await asyncio.to_thread(self.again))

    def leave(self, service: Service) -> None:
        """Let a scenario that is served no more finish what it has accepted."""
        task = asyncio.create_task(service.close(self.drain_s))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _load(self, numbers: dict[str, int | None]) -> None:
        """Load every scenario; those that are kept warm first, since there may be no room for all."""
        for warm in (True, False):
            services = [service for service in self.services.values() if service.wrong is None and keeps(service) == warm]
            await asyncio.gather(*(service.load(numbers[service.name]) for service in services))

    def _preload(self, numbers: dict[str, int | None]) -> None:
        """Tell the zygotes what the versions' workers share, before the first fork."""
        for name, number in numbers.items():
            if number is None:
                continue
            try:
                manifest = self.store.manifest(name, number)
            except (ScenariumError, ValueError):
                continue  # told when the version is opened
            self.nursery.want(zygote_kind(self.services[name].config, manifest), manifest.preload)

    async def _poll(self) -> None:
        """Notice promoted versions, rollouts, newly installed packages, and what workers left behind."""
        while True:
            await asyncio.sleep(POLL_S)
            self.nursery.reap()
            try:
                found = await asyncio.to_thread(lambda: {name: self._standing(name) for name in list(self.services)})
            except Exception as fault:
                logs.event("warning", "store_unreadable", reason=f"{type(fault).__name__}: {fault}")
                continue
            self.nursery.refresh()
            for name, at in found.items():
                service, number = self.services.get(name), at.production
                if service and number is not None and number != service.tried and service.wrong is None:
                    self.spawn(service.load(number))
                self.rollouts.follow(name, at)


class App(Starlette):
    """The hot routes by their path; everything else by Starlette's router.

    A look into a dict takes a microsecond, where the router and the middlewares around it take 25, and FastAPI (dependencies, exit
    stacks, telemetry) still more.
    """

    hot: dict[str, ASGIApp]
    """What follows ``/scenarios/{name}/`` to its endpoint."""

    def hot_route(self, path: str) -> tuple[str, str]:
        """The scenario that a path names, and the route; both empty where it is none of the hot ones. Those of ``/v1`` name it in the body."""
        if path in ASKED:
            return "", path
        if path.startswith(MODELS) and path.endswith("/infer"):
            name, version = path[len(MODELS) :].partition("/")[::2]
            found = name if name in self.state.gateway.services else name.rpartition(".")[0]
            return found, f"{MODELS}{{name}}/{'versions/{version}/' if version != 'infer' else ''}infer"
        name, _, rest = path[len(PREFIX) :].partition("/") if path.startswith(PREFIX) else ("", "", "")
        return (name, f"{PREFIX}{{name}}/{rest}") if rest in self.hot else ("", "")

    v2: V2
    """Everything below ``/v2``."""
    v1: V1
    """Everything below ``/v1``."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            name, route = self.hot_route(scope["path"])
            scope["path_params"] = {"name": name} if route.endswith("/live") else None
            await self.hot["live"](scope, receive, send)
            return
        if scope["type"] == "http" and (scope["path"].startswith("/v2/") or scope["path"] == "/v2"):
            await self.v2(scope, receive, send)
            return
        if scope["type"] == "http" and (scope["path"].startswith("/v1/") or scope["path"] == "/v1"):
            await self.v1(scope, receive, send)
            return
        if scope["type"] == "http" and scope["path"].startswith(PREFIX):
            name, _, rest = scope["path"][len(PREFIX) :].partition("/")
            endpoint = self.hot.get(rest)
            if endpoint:
                scope["path_params"] = {"name": name}
                try:
                    await endpoint(scope, receive, send)
                except Exception as fault:
                    await (await cold.crashed(Request(scope), fault))(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def create_app(registry: Registry, store: Store, config: GatewayConfig | None = None) -> App:
    """The ASGI app of one gateway; its lifespan starts and ends the workers."""
    gateway = Gateway(registry, store, config or GatewayConfig())

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await gateway.start()
        async with rpc.serving(gateway, app.v2.inference):
            yield
        await gateway.stop()
        await app.v1.upstreams.close()

    hot: dict[str, ASGIApp] = {"predict": Predict(gateway), "predict/batch": Bulk(gateway), "stream": Stream(gateway), "jobs": Submit(gateway)}
    hot["live"] = Live(gateway)
    guarded = cold.Guard(cold.create_app(gateway), gateway)
    app = App(routes=[Mount("/", guarded)], lifespan=lifespan, exception_handlers={Exception: cold.crashed})
    app.hot = hot
    app.v2 = V2(gateway)
    app.v1 = V1(gateway)
    app.state.gateway = gateway
    return app
