"""WebSocket connections as uvicorn keeps them, within the bounds of ``connections``: they count as connections, a message has at most the size
that its scenario takes and comes in time and in few pieces, and a client that takes nothing is cut off. A gateway that ends lets each finish what
it works on.
"""

from __future__ import annotations

import time
from asyncio import BaseTransport
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

if TYPE_CHECKING:
    from websockets.frames import Frame
    from websockets.http11 import Request

    from scenarium.gateway.connections import Bounds

PATH = b"/live"
MOST_PIECES = 1024
"""Fragments of one message: each costs 50 bytes, however small it is."""
SLOWEST = 16 * 1024
"""Bytes of a message that give its client another second."""
NOT_TEXT, POLICY, TOO_LARGE = 1007, 1008, 1009
CLOSE_S = 2.0
"""How long the client may take to answer a close, and is heard when it has done wrong."""


class Socket(WebSocketsSansIOProtocol):
    """One connection. The endpoint finds it as the scope's extension ``scenarium.socket``."""

    def __init__(self, bounds: Bounds, **options: Any) -> None:
        super().__init__(**options)
        self.bounds = bounds
        self.close_timeout = CLOSE_S
        self.leave: Callable[[], None] | None = None
        """Called when the gateway ends; the endpoint closes soon after."""
        self.since: float | None = None
        """When the message began that is not complete; None: there is none."""
        self.failed = False
        """Whether it ends because of what the client sent."""
        self.unsent = 0
        self.stuck = 0.0
        """For how long the client has taken none of the bytes that wait for it."""

    def limit(self, size: int) -> None:
        """Take messages up to ``size`` bytes; a larger one ends the connection with 1009."""
        self.conn.max_message_size = size

    @property
    def unreadable(self) -> bool:
        """Whether the request for it has more headers than the library reads, which it does not answer."""
        return self.conn.handshake_exc is not None and not self.handshake_initiated

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self.bounds.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.bounds.open.discard(self)
        super().connection_lost(exc)

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.response.status_code == 101:
            extensions = cast(dict[str, Any], self.scope["extensions"])  # a server may add its own
            extensions["scenarium.socket"] = self

    def data_received(self, data: bytes) -> None:
        if self.failed:
            return
        super().data_received(data)
        if self.since is None and self._held():
            self.since = time.monotonic()

    def handle_cont(self, event: Frame) -> None:
        super().handle_cont(event)
        if len(self.frames) > MOST_PIECES:
            self._fail(TOO_LARGE, "too many fragments")

    def send_receive_event_to_app(self) -> None:
        self.since = None
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:  # which uvicorn would write to the log with its traceback
                self.frames = []
                self._fail(NOT_TEXT, "not UTF-8")
                return
        super().send_receive_event_to_app()

    def _held(self) -> int:
        """Bytes of a message that is not complete."""
        return sum(map(len, self.frames)) + len(self.conn.reader.buffer)

    def _fail(self, code: int, reason: str) -> None:
        self.conn.fail(code, reason)
        self.handle_parser_exception()

    def handle_parser_exception(self) -> None:
        """Tell endpoint and client why it ends. What still comes is thrown away for a while: closing with unread bytes would reset the connection, and
        the client would not learn the reason."""
        if self.failed or self.conn.close_sent is None:
            return
        self.failed = self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": self.conn.close_sent.code, "reason": self.conn.close_sent.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.resume_reading()
        self.close_timer = self.loop.call_later(CLOSE_S, self.transport.close)

    def shutdown(self) -> None:
        if self.leave and not self.close_sent:
            self.leave()
        else:
            super().shutdown()

    def look(self, now: float, tick: float, timeout: float) -> None:
        """Cut off a client that takes nothing, or is slow to complete a message."""
        unsent = self.transport.get_write_buffer_size()
        self.stuck = self.stuck + tick if unsent and unsent == self.unsent else 0.0
        self.unsent = unsent
        if self.stuck > timeout:
            self.bounds.rejected["slow"] += 1
            self.transport.abort()
        elif self.since is not None and now - self.since > timeout + self._held() / SLOWEST and not self.close_sent:
            self.bounds.rejected["slow"] += 1
            self._fail(POLICY, "too slow")
