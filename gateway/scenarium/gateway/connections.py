"""Connections as uvicorn keeps them, with bounds on what a client may cost: slow headers, slow bodies, large headers, too many at once.

uvicorn waits without end for the headers and the body of a request (its keep-alive time begins after an answer), and httptools takes
headers of any size. The times are looked at once a second for all connections together, so a request pays two assignments for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from scenarium.core.errors import ScenariumError
from scenarium.gateway import direct, problems
from scenarium.gateway.predict import PROBLEM, RETRY_AFTER, Call
from scenarium.gateway.sockets import PATH, Socket

if TYPE_CHECKING:
    from scenarium.core.config import GatewayConfig
    from scenarium.gateway.app import App

SLOWEST = 16 * 1024
"""Bytes of a body that give its client another second."""
TICK_S = 1.0
LINGER_S, LINGER_BYTES = 2.0, 32 * 1024 * 1024
"""For how long, and for how much, a client is heard that still sends when its answer is complete."""


class Bounds:
    """What a client may cost, and how many went beyond it."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.config: GatewayConfig = app.state.gateway.config
        self.rejected: dict[str, int] = app.state.gateway.admission.rejected
        self.open: set[Connection | Socket] = set()

    def connection(self, **options: Any) -> Connection:
        """A new connection, as uvicorn asks for one."""
        return Connection(self, **options)

    def socket(self, **options: Any) -> Socket:
        """What a connection becomes that asks for a WebSocket, as uvicorn asks for one."""
        return Socket(self, **options)

    async def watch(self) -> None:
        """End the connections of slow clients, for ever."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            for connection in list(self.open):
                connection.look(now, now - began, self.config.body_timeout_s)


class Joined:
    """A transport that holds a write back until the next one, or until the turn of the loop ends: uvicorn writes head and body of an answer apart, and
    each write costs a system call here and another wake-up of the client."""

    def __init__(self, transport: asyncio.Transport, lingers: Callable[[], bool]) -> None:
        self.transport = transport
        self.lingers = lingers
        """Asked when the connection is to be closed; whether it will be closed later."""
        self.held = b""
        self.turn: asyncio.Handle | None = None
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Write, now or soon."""
        if self.turn is None:
            self.held = data
            self.turn = asyncio.get_running_loop().call_soon(self.flush)
        else:
            self.held += data
            self.flush()

    def send(self, data: bytes) -> None:
        """Write without waiting for more."""
        if self.turn is not None:
            self.held += data
            self.flush()
        elif not self.is_closing():
            self.transport.write(data)

    def flush(self) -> None:
        """Write what is held back."""
        if self.turn is None:
            return
        self.turn.cancel()
        self.turn = None
        if not self.is_closing():
            self.transport.write(self.held)

    def close(self) -> None:
        """Close after what was written."""
        self.flush()
        if not self.lingers():
            self.transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


class Connection(HttpToolsProtocol):
    """One connection."""

    def __init__(self, bounds: Bounds, **options: Any) -> None:
        super().__init__(**options)
        self.bounds = bounds
        self.receiving = True
        """Whether the client has something to send: a request began and is not complete, or the connection is new."""
        self.in_head = True
        self.since = time.monotonic()
        """When the client began to send these headers, or this body; later by the time in which the gateway itself did not read."""
        self.size = 0
        """Bytes of these headers, or of this body."""
        self.unheard: int | None = None
        """Bytes that are still thrown away before the connection is torn; None: it does not linger."""
        self.unsent = 0
        self.stuck = 0.0
        """For how long the client has taken none of the bytes that wait for it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        super().connection_made(cast(asyncio.Transport, Joined(transport, self._lingers)))
        self.bounds.open.add(self)
        if len(self.bounds.open) > self.bounds.config.max_connections:
            self.refuse("connections", ScenariumError("SCN-4111", limit=self.bounds.config.max_connections))

    def connection_lost(self, exc: Exception | None) -> None:
        self.bounds.open.discard(self)
        self.receiving = False
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.unheard is not None:
            self.unheard -= len(data)
            if self.unheard < 0:
                self.transport.abort()
            return
        if self.transport.is_closing():
            return
        if self.in_head:
            if not self.receiving:
                self.receiving, self.since = True, time.monotonic()
            self.size += len(data)
        super().data_received(data)
        if self.in_head and self.size > self.bounds.config.max_header_bytes:
            self._too_large()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.receiving = self.in_head = True
        self.since = time.monotonic()

    def on_headers_complete(self) -> None:
        self.in_head = False
        limit = self.bounds.config.max_header_bytes
        # What came in one piece may hold a body too: only then are the headers counted.
        if self.size > limit and len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > limit:
            self._too_large()
            return
        self.since, self.size = time.monotonic(), 0
        if self.cycle is None or self.cycle.response_complete:
            taken = direct.take(self.bounds.app, self)
            if taken:
                self.cycle = cast(Any, taken)
                return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.size += len(body)
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self.receiving = False
        self.in_head, self.size = True, 0  # of the request that may follow
        if not self.transport.is_closing():
            super().on_message_complete()

    def answer(self, status: int, headers: list[tuple[bytes, bytes]], content: bytes, keep_alive: bool) -> None:
        """Write a whole answer, and go on with what the client has sent since."""
        parts = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *headers):
            parts += (name, b": ", value, b"\r\n")
            keep_alive = keep_alive and name != b"connection"  # the only one that is ever set says close
        if not keep_alive and (b"connection", b"close") not in headers:
            parts.append(b"connection: close\r\n")
        parts += (b"content-length: %d\r\n\r\n" % len(content), content)
        cast(Joined, self.transport).send(b"".join(parts))
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _should_upgrade(self) -> bool:
        free = self.cycle is None or self.cycle.response_complete  # an answer that is on its way goes first
        wanted = self.scope["method"] == "GET" and self.url.partition(b"?")[0].endswith(PATH)
        return free and wanted and super()._should_upgrade()

    def handle_websocket_upgrade(self) -> None:
        self.bounds.open.discard(self)
        super().handle_websocket_upgrade()
        if cast(Socket, self.transport.get_protocol()).unreadable:
            self.refuse("malformed", ScenariumError("SCN-4112"))

    def send_400_response(self, msg: str) -> None:
        self.refuse("malformed", ScenariumError("SCN-4112"))

    def look(self, now: float, tick: float, timeout: float) -> None:
        """End the connection where the client is slow; a second in which the gateway did not read is not the client's."""
        unsent = self.transport.get_write_buffer_size()
        self.stuck = self.stuck + tick if unsent and unsent == self.unsent else 0.0
        self.unsent = unsent
        if self.stuck > timeout:
            self.bounds.rejected["slow"] += 1
            self.transport.abort()
            return
        if not self.receiving or self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.since += tick
        elif now - self.since > timeout + (0 if self.in_head else self.size / SLOWEST):
            self.refuse("slow", ScenariumError("SCN-4109", seconds=timeout))

    def _too_large(self) -> None:
        self.refuse("headers", ScenariumError("SCN-4110", limit=self.bounds.config.max_header_bytes))

    def refuse(self, reason: str, error: ScenariumError) -> None:
        """Answer with problem details where no answer has begun, and close."""
        self.bounds.rejected[reason] += 1
        before = self.cycle is not None and not self.cycle.response_complete
        # The answer of a request before this one, or one that has begun, must not be mixed with this one.
        if not before or (self.cycle.more_body and not self.cycle.response_started):
            call = Call(self.headers or [])
            body = problems.body(error, call.language)
            headers = [PROBLEM, (b"x-request-id", call.rid_header), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
            if error.status == 503:
                headers.append(RETRY_AFTER)
            self.transport.write(STATUS_LINE[error.status] + b"".join(b"%s: %s\r\n" % header for header in headers) + b"\r\n" + body)
        self.transport.close()
        self.receiving = False

    def _lingers(self) -> bool:
        """Whether the client is in the middle of a body. Then nothing more is written, and what comes is thrown away for a while: closing with unread
        bytes would reset the connection, and many a client would never see its answer (RFC 9112, 9.6)."""
        if self.unheard is None and self.receiving and not self.in_head and not self.transport.is_closing():
            self.unheard = LINGER_BYTES
            self.transport.write_eof()
            self.flow.resume_reading()
            self.transport.is_closing = lambda: True  # type: ignore[method-assign]  # for everyone who would answer or listen
            self.loop.call_later(LINGER_S, self.transport.abort)
        return self.unheard is not None
