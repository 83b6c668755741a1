"""A span for each request, by OpenTelemetry's conventions for HTTP servers, and one for its wait in the queue. Opt-in; see ``scenarium.core.spans``.

It stands around the whole app where it is asked for; a request that its connection would answer itself begins its span there (``direct``).
What the app then reads as ``traceparent`` is the request's own span: so it reaches the worker, whose spans are its children, and the log.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scenarium.core import __version__, spans
from scenarium.core.errors import ScenariumError
from scenarium.gateway import logs
from scenarium.gateway.predict import TRACE

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from scenarium.gateway.app import App
    from scenarium.gateway.requests import Request

ANSWERED = {b"x-scenarium-version": "scenarium.version", b"x-scenarium-cache": "scenarium.cache"}
"""Headers of an answer that become attributes of its span."""


class Tracing:
    """What makes the gateway's spans.

    Raises:
        ScenariumError: SCN-1120 (the extra is not installed).
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.provider = spans.make_provider(environ)
        from opentelemetry.trace import SpanKind

        self.server = SpanKind.SERVER
        self.tracer = self.provider.get_tracer("scenarium.gateway", __version__)

    def around(self, served: ASGIApp, app: App) -> ASGIApp:
        """What is served, with a span for each request; ``app`` knows the routes."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await served(scope, receive, send)
                return
            span = scope.pop("span", None) or self.begin(scope, app)
            if not span.is_recording():
                await served(scope, receive, send)
                return

            async def heard(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _answered(span, message)
                await send(message)

            try:
                await served(scope, receive, heard)
            finally:
                route = getattr(scope.get("route"), "path", None)  # the cold routes' router tells it late
                if route:
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attribute("http.route", route)
                if "scenario" in scope:  # named in the body
                    span.set_attribute("scenarium.scenario", scope["scenario"])
                span.end()

        return traced

    def queued(self, request: Request) -> None:
        """The wait of one request that has ended, until a worker got it."""
        if not spans.sampled(request.trace):
            return
        now, clock = time.time_ns(), time.monotonic()
        start, end = (now - int((clock - when) * 1e9) for when in (request.entered, request.sent or clock))
        self.tracer.start_span("queue", spans.context_of(request.trace, remote=False), start_time=start).end(max(start, end))

    def close(self) -> None:
        """Send what waits."""
        spans.close(self.provider)

    def begin(self, scope: Scope, app: App) -> Span:
        """The request's span; its ``traceparent`` takes the place of the client's. Whoever begins it before the app is called leaves it in the scope."""
        trace, state, agent, headers = "", "", "", []
        for pair in scope["headers"]:
            name, value = pair
            if name == b"traceparent":
                trace = value.decode("latin-1") if TRACE.fullmatch(value) else ""
                continue
            if name == b"tracestate":
                state = f"{state},{value.decode('latin-1')}" if state else value.decode("latin-1")
            elif name == b"user-agent":
                agent = value.decode("latin-1")
            headers.append(pair)
        method, name, attributes = scope["method"], scope["method"], _about(scope, agent)
        scenario, route = app.hot_route(scope["path"])
        if route:
            name = f"{method} {route}"
            attributes |= {"http.route": route} | ({"scenarium.scenario": scenario} if scenario else {})
        span = self.tracer.start_span(name, spans.context_of(trace and trace + state), self.server, attributes)
        found = span.get_span_context()
        headers.append((b"traceparent", b"00-%032x-%016x-%02x" % (found.trace_id, found.span_id, found.trace_flags)))
        scope["headers"] = headers
        return span


def _about(scope: Scope, agent: str) -> dict[str, Any]:
    server, client = scope.get("server"), scope.get("client")
    found = {
        "http.request.method": scope["method"],
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
        "network.protocol.version": scope["http_version"],
    }
    if server:
        found |= {"server.address": server[0], "server.port": server[1]}
    if client:
        found["client.address"] = client[0]
    if agent:
        found["user_agent.original"] = agent
    return found


def _answered(span: Span, message: Message) -> None:
    from opentelemetry.trace import StatusCode

    status = message["status"]
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_attribute("error.type", str(status))
        span.set_status(StatusCode.ERROR)
    for name, value in message["headers"]:
        if name in ANSWERED:
            span.set_attribute(ANSWERED[name], value.decode("latin-1"))


def open_tracing(setting: bool | None, environ: Mapping[str, str]) -> Tracing | None:
    """The tracing that is asked for. Variables that are meant for others must not stop a gateway that cannot trace.

    Raises:
        ScenariumError: SCN-1120, where the setting asks for it.
    """
    if not spans.wanted(setting, environ):
        return None
    try:
        return Tracing(environ)
    except ScenariumError as fault:
        if setting:
            raise
        logs.event("warning", "tracing_unavailable", code=fault.code, title=fault.title(), hint=fault.hint())
        return None
