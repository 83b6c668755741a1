"""The access log: a line for each request, or for a share of them (``[gateway] access_log``), without what was asked or answered.

A line is the log's event ``request`` with ``request_id``, ``scenario`` (null where the path names none that is served), ``method``, ``path``,
``version``, ``status`` (null where the client left before an answer), ``ms`` (from the headers to the answer's end), ``key`` (its id),
``trace_id`` and ``cache``. What a client may choose (a request id, the path of an unknown route) goes through the installed extensions'
``log_entry`` first, as payloads do in a worker.

It stands around the whole app where it is asked for, and nowhere else.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from scenarium.core.spans import trace_id
from scenarium.gateway import logs
from scenarium.gateway.predict import TRACE

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from scenarium.core.registry import Registry
    from scenarium.gateway.app import App

LONGEST = 256
"""Characters of a path or a request id that are written."""


class AccessLog:
    """Writes the lines.

    Raises:
        ScenariumError: SCN-1002, an extension cannot be imported: it may be what masks data.
    """

    def __init__(self, share: float, registry: Registry) -> None:
        from scenarium.core.relay import make_relay

        self.share = share
        self.mask = make_relay(object(), "access log", registry.extensions).log_entry

    def around(self, served: ASGIApp, app: App) -> ASGIApp:
        """What is served, with a line for each request; ``app`` knows the routes."""

        async def heard(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or random.random() >= self.share:
                await served(scope, receive, send)
                return
            began = time.perf_counter()
            start: Message = {}

            async def told(message: Message) -> None:
                if message["type"] == "http.response.start":
                    start.update(message)
                await send(message)

            try:
                await served(scope, receive, told)
            finally:
                self._write(scope, app, start, round((time.perf_counter() - began) * 1000, 3))

        return heard

    def _write(self, scope: Scope, app: App, start: Message, ms: float) -> None:
        sent, came = dict(start.get("headers", ())), dict(scope["headers"])
        scenario = scope.get("scenario") or app.hot_route(scope["path"])[0]
        known = scenario in app.state.gateway.services
        ident = sent.get(b"x-request-id") or came.get(b"x-request-id", b"")[:LONGEST]
        chosen: dict[str, Any] = {"request_id": ident.decode("latin-1") or None, "path": scope["path"][:LONGEST]}
        if b"x-request-id" in came or not known:
            chosen = self._masked(scenario if known else "", chosen)
        version, trace, caller = sent.get(b"x-scenarium-version"), came.get(b"traceparent", b""), scope.get("caller")
        logs.event(
            "info",
            "request",
            request_id=chosen.get("request_id"),
            scenario=scenario if known else None,
            method=scope["method"],
            path=chosen.get("path"),
            version=int(version) if version else None,
            status=start.get("status"),
            ms=ms,
            key=(caller.id or None) if caller else None,
            trace_id=trace_id(trace.decode()) if TRACE.fullmatch(trace) else None,
            cache=sent[b"x-scenarium-cache"].decode() if b"x-scenarium-cache" in sent else None,
        )

    def _masked(self, scenario: str, chosen: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(self.mask(scenario=scenario, entry=chosen))
        except Exception as fault:  # an extension's own; what it was to mask is not written
            logs.event("error", "mask_failed", reason=f"{type(fault).__name__}: {fault}")
            return {}
