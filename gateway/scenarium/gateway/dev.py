"""Serving one plugin while it is written (``scenarium dev``): by the gateway and its workers, or in this very process.

Each save is served within a second where it leaves the training as it was; else a quick training comes first. What cannot be
read, loaded or trained is shown with the author's own lines, and the version before goes on serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import linecache
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvicorn
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from watchfiles import PythonFilter, awatch

from scenarium.core.config import GatewayConfig
from scenarium.core.errors import ScenariumError, language
from scenarium.core.kit.dev import Session, say
from scenarium.core.manifest import Manifest
from scenarium.core.runtime import Runtime
from scenarium.core.traces import AUTHOR, author_trace
from scenarium.gateway import logs, server
from scenarium.gateway.app import Gateway

SETTLE_MS = 60
"""Editors write a file in several steps; what follows within this time is the same save."""

Reload = Callable[[int], Awaitable[str | None]]
"""Serve this version with the source as it is now; returns why that failed."""


def serve(target: str, *, port: int, in_process: bool, sets: tuple[str, ...] = ()) -> int:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ScenariumError: SCN-7004 (no plugin there), SCN-7701 (it could not be trained once).
    """
    # Workers inherit these: tracebacks as the author reads them, and no cache of byte code, which knows a source by its second.
    os.environ[AUTHOR] = os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    session = Session(target, sets)
    if found := session.fault():
        say(found, found)
    number = session.prepare()
    if in_process:
        return InProcess(session, number).run(port)
    os.environ["PYTHONBREAKPOINT"] = "0"  # a worker has no terminal
    logs.set_format("author")
    return server.serve(session.registry, session.store, GatewayConfig(port=port, keys=None), beside=lambda gateway: _follow_workers(session, gateway))


async def _follow_workers(session: Session, gateway: Gateway) -> None:
    say(_how_to_ask(session), _how_to_ask(session))

    async def reload(number: int) -> str | None:
        service = gateway.service(session.name)
        service.last_fault = None
        await service.reload(number)
        fault = service.last_fault
        return fault[language()]["title"] if fault else None

    await watch(session, reload)


async def watch(session: Session, reload: Reload) -> None:
    """Serve each save of the author's."""
    single = session.home.is_file()
    # Of a single file the folder is watched: editors save by putting a new file in the old one's place.
    root = session.home.parent if single else session.home
    async for _ in awatch(root, watch_filter=PythonFilter(), debounce=SETTLE_MS, step=SETTLE_MS // 2, recursive=not single):
        began = time.monotonic()
        if found := await asyncio.to_thread(session.fault):
            say(f"{found}\nnot served; the version before goes on", f"{found}\n未生效，仍由之前的版本提供服务")
            continue
        try:
            number = await asyncio.to_thread(session.prepare)
        except ScenariumError as error:
            say(f"{error}\nthe version before goes on", f"{error}\n仍由之前的版本提供服务")
            continue
        reason = await reload(number)
        seconds = time.monotonic() - began
        if reason:
            say(f"{reason}\nnot served; the version before goes on", f"{reason}\n未生效，仍由之前的版本提供服务")
        else:
            say(f"serving your change after {seconds:.2f} s", f"{seconds:.2f} 秒后生效")


def _how_to_ask(session: Session) -> str:
    body = json.dumps(session.store.manifest(session.name, session.store.resolve(session.name)).sample, ensure_ascii=False)
    return f"  POST /scenarios/{session.name}/predict  -d '{body[:300]}'"


class InProcess:
    """The model in the server's own process and main thread, where a debugger can stop it."""

    def __init__(self, session: Session, number: int) -> None:
        self.session = session
        self.runtime = self._open(number)

    def _open(self, number: int) -> Runtime:
        """Load afresh: the author's modules are imported again."""
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file and Path(file).is_relative_to(self.session.home):
                del sys.modules[name]
        linecache.checkcache()
        version = self.session.store.open(self.session.name, number)
        manifest: Manifest = version.manifest
        return Runtime.open(self.session.registry.scenario(self.session.name), version.folder, manifest)

    async def reload(self, number: int) -> str | None:
        """Replace the runtime."""
        try:
            self.runtime = self._open(number)
        except ScenariumError as error:
            return author_trace(error.__cause__) if error.__cause__ else str(error)
        except Exception as fault:
            return author_trace(fault)
        return None

    async def predict(self, request: Request) -> Response:
        """Answer one request, on the event loop's thread: it stands still while a debugger does."""
        body = await request.body()
        chosen = language(request.headers.get("accept-language"))
        answer: BaseModel | Exception
        try:
            answer = self.runtime.predict([self.runtime.decode(body, request.headers.get("content-type", ""))])[0]
        except ScenariumError as fault:
            answer = fault
        if isinstance(answer, BaseModel):
            return Response(answer.model_dump_json(), media_type="application/json")
        error = answer if isinstance(answer, ScenariumError) else ScenariumError("SCN-4003", name=self.session.name, reason=str(answer))
        if error.__cause__:
            say(author_trace(error.__cause__), author_trace(error.__cause__))
        return Response(json.dumps(error.problem(chosen), ensure_ascii=False), error.status, media_type="application/problem+json")

    def run(self, port: int) -> int:
        """Serve until a signal."""
        listener = socket.create_server(("127.0.0.1", port))
        app = Starlette(routes=[Route(f"/scenarios/{self.session.name}/predict", self.predict, methods=["POST"])])
        # asyncio's own loop: debuggers read from the terminal in the loop's thread, which uvloop does not allow for.
        running = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", loop="asyncio"))

        async def main() -> None:
            where = f"http://127.0.0.1:{listener.getsockname()[1]}\n{_how_to_ask(self.session)}"
            say(where, where)
            following = asyncio.create_task(watch(self.session, self.reload))
            await running.serve(sockets=[listener])
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following

        asyncio.run(main())
        return 0
