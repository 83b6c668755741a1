"""WebSocket connections as uvicorn keeps them, within the bounds of ``connections``: they count as connections, a message has at most the size
that its scenario takes, and a client that takes nothing is cut off. A gateway that ends lets each finish what it works on.
"""

from __future__ import annotations

from asyncio import BaseTransport
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

if TYPE_CHECKING:
    from websockets.http11 import Request

    from scenarium.gateway.connections import Bounds

PATH = b"/live"
CLOSE_S = 2.0
"""How long the client may take to answer a close."""


class Socket(WebSocketsSansIOProtocol):
    """One connection. The endpoint finds it as the scope's extension ``scenarium.socket``."""

    def __init__(self, bounds: Bounds, **options: Any) -> None:
        super().__init__(**options)
        self.bounds = bounds
        self.close_timeout = CLOSE_S
        self.leave: Callable[[], None] | None = None
        """Called when the gateway ends; the endpoint closes soon after."""
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

    def shutdown(self) -> None:
        if self.leave and not self.close_sent:
            self.leave()
        else:
            super().shutdown()

    def look(self, now: float, tick: float, timeout: float) -> None:
        """Cut off a client that takes nothing."""
        unsent = self.transport.get_write_buffer_size()
        self.stuck = self.stuck + tick if unsent and unsent == self.unsent else 0.0
        self.unsent = unsent
        if self.stuck > timeout:
            self.bounds.rejected["slow"] += 1
            self.transport.abort()
