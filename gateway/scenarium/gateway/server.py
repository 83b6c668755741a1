"""Running the gateway: uvicorn with uvloop and httptools around the app, and a clean end on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from scenarium.core.config import GatewayConfig
from scenarium.core.errors import ScenariumError
from scenarium.core.registry import Registry
from scenarium.core.store import Store
from scenarium.gateway import logs
from scenarium.gateway.app import Gateway, create_app
from scenarium.gateway.connections import Bounds
from scenarium.gateway.kserve import rpc

if TYPE_CHECKING:
    from starlette.types import ASGIApp

Beside = Callable[[Gateway], Coroutine[Any, Any, None]]
YOUNG_OBJECTS = 10_000
"""So many more objects than were freed make the garbage collector look: a request makes some dozens, and nearly all are freed without it."""
PING_S = 20.0
"""How often the client of a WebSocket is asked whether it is there, and how long it may take to answer."""


class _Server(uvicorn.Server):
    """Signals are handled on the loop, so that a drained gateway exits with 0; the garbage collector leaves alone what the start made."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is there now stays. Looking through it for cycles would stop every request for 50 to 90 ms, several times a minute under load.
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS, 20, 20)


def serve(
    registry: Registry,
    store: Store,
    config: GatewayConfig,
    beside: Beside | None = None,
    again: Callable[[], Registry] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status. ``beside`` runs on the same loop from when it listens to its end.
    ``again`` reads the settings anew, on SIGHUP.

    Raises:
        OSError: the address cannot be bound.
        ScenariumError: SCN-1101, SCN-1102 (keys), SCN-1105 (audit log), SCN-1107 (Redis), SCN-1002 (an extension), SCN-1120 (traces),
            SCN-4206, SCN-4207 (gRPC).
    """
    if beside is None:  # else the caller has chosen
        logs.set_format(config.log_format)
    logs.capture()
    app = create_app(registry, store, config)
    gateway: Gateway = app.state.gateway
    gateway.again = again
    gateway.open()  # before anything listens or starts
    rpc.check(config)
    _allow_files(config.max_connections)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.create_server((config.host, config.port), family=family, backlog=2048)
    bounds = Bounds(app)
    server = _Server(_options(config, gateway.around(app), bounds))
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(_serve(server, gateway, listener, bounds, beside))
    logs.event("info", "stopped")
    return 0


def _options(config: GatewayConfig, app: ASGIApp, bounds: Bounds) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=cast(Any, bounds.connection),
        timeout_keep_alive=cast(int, config.keep_alive_s),  # it is only added to a time
        log_config=None,  # uvicorn's own lines go through the root logger
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks who the client's proxy spoke for
        lifespan="on",
        timeout_graceful_shutdown=int(config.drain_s) + 2,  # for who did not end when ``hurry`` told them to
        ws=cast(Any, bounds.socket),
        ws_ping_interval=PING_S,
        ws_ping_timeout=PING_S,
        ws_per_message_deflate=False,  # pictures are packed already, and unpacking takes the loop from everybody
    )


async def _serve(server: _Server, gateway: Gateway, listener: socket.socket, bounds: Bounds, beside: Beside | None) -> None:
    """Serve until a signal comes and everything has ended."""
    _heed_signals(server, gateway)
    host, port = listener.getsockname()[:2]
    logs.event("info", "listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}")
    tasks = [asyncio.create_task(bounds.watch())]
    if beside:
        tasks.append(asyncio.create_task(beside(gateway)))
    await server.serve(sockets=[listener])
    for task in tasks:
        task.cancel()


def _heed_signals(server: _Server, gateway: Gateway) -> None:
    loop = asyncio.get_running_loop()

    def end(number: int) -> None:
        if not server.should_exit:
            gateway.draining = True
            server.should_exit = True
            loop.call_later(gateway.drain_s, gateway.hurry)
            logs.event("info", "draining")
        elif number == signal.SIGINT:  # Ctrl-C again: the person does not want to wait
            gateway.hurry()

    async def reload() -> None:
        try:
            await gateway.reload()
        except ScenariumError as fault:  # what is served goes on
            logs.event("error", "reload_refused", code=fault.code, title=fault.title(), hint=fault.hint())

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, lambda: gateway.spawn(reload()))


def _allow_files(connections: int) -> None:
    """Raise the soft limit of open files, often 1024, so that every connection can have one."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # another system, or a limit that may not be raised
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = connections + 1024  # workers, the store, libraries
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
