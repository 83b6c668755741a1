"""The hot routes: a body's bytes to the queue, the answer's bytes back. Nothing here parses JSON.

Plain ASGI endpoints, which ``app.App`` finds by their path: no router, no dependency injection, no body model.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from scenarium.core.errors import ScenariumError, language
from scenarium.gateway import logs, problems
from scenarium.gateway.admission import ANONYMOUS, UNREAD
from scenarium.gateway.audit import Entry
from scenarium.gateway.cache import Found, digest
from scenarium.gateway.requests import PRIORITIES, Outcome, Priority, Request, settle

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from scenarium.gateway.app import Gateway
    from scenarium.gateway.cache import Cache
    from scenarium.gateway.services import Service

_COUNT = itertools.count(1)
_BOOT = os.urandom(5).hex()
_SANE_ID = re.compile(rb"[\w.:/+=@-]{1,128}")
TRACE = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_PRIORITY = {priority.encode(): priority for priority in PRIORITIES}
LONGEST_STATE = 512
"""Most characters of a ``tracestate`` that go on (Trace Context, 3.3.1.5)."""
LONGEST_TYPE = 1024
"""Most bytes of a content type that are looked at."""
LONGEST_KEY = 256
"""Most characters of a routing key."""
LARGEST_KEYED = 256 * 1024
"""Largest body in which a routing key is looked for: parsing takes the event loop 10 ms a MB, from all scenarios."""
RETRY_AFTER = (b"retry-after", b"1")
JSON = (b"content-type", b"application/json")
PROBLEM = (b"content-type", problems.PROBLEM)


class Disconnected(Exception):
    """The client left before its body was complete."""


class Call:
    """What the headers of one HTTP request say."""

    __slots__ = (
        "caller",
        "content_type",
        "credential",
        "deadline_ms",
        "encoding",
        "host",
        "key",
        "language",
        "length",
        "priority",
        "rid",
        "rid_header",
        "trace",
    )

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.rid = next(_COUNT)
        self.rid_header = b""
        self.content_type = ""
        self.language = "en"
        self.trace = self.key = ""
        self.length = 0
        self.deadline_ms = b""
        self.priority = b""
        self.encoding = b""
        """How the body is packed; nothing unpacks one."""
        self.credential = b""
        """The text of an API key."""
        self.caller = ANONYMOUS
        self.host = state = ""
        for name, value in headers:
            if name == b"content-type":
                self.content_type = value[:LONGEST_TYPE].decode("latin-1")
            elif name == b"content-length":
                self.length = int(value)
            elif name == b"authorization":
                if value[:7].lower() == b"bearer ":
                    self.credential = value[7:].strip()
            elif name == b"host":
                self.host = value.decode("latin-1")
            elif name == b"accept-language":
                self.language = language(value.decode("latin-1"))
            elif name == b"x-request-id":
                self.rid_header = value if _SANE_ID.fullmatch(value) else b""
            elif name == b"traceparent":
                self.trace = value.decode("latin-1") if TRACE.fullmatch(value) else ""
            elif name == b"tracestate":
                state = f"{state},{value.decode('latin-1')}" if state else value.decode("latin-1")
            elif name == b"x-scenarium-key":
                self.key = value.decode("utf8", "replace")
            elif name == b"x-scenarium-deadline-ms":
                self.deadline_ms = value
            elif name == b"x-scenarium-priority":
                self.priority = value
            elif name == b"content-encoding":
                self.encoding = value
            elif name == b"x-api-key":
                self.credential = self.credential or value
        if state and self.trace:
            self.trace += state if len(state) <= LONGEST_STATE else state[: LONGEST_STATE + 1].rpartition(",")[0]
        if not self.rid_header:
            self.rid_header = f"{_BOOT}-{self.rid:x}".encode()

    def check(self) -> None:
        """Refuse headers that would be left out of account.

        Raises:
            ScenariumError: SCN-4018 (no such priority, a routing key that is too long), SCN-4113 (a packed body).
        """
        if self.encoding not in (b"", b"identity"):
            raise ScenariumError("SCN-4113", value=self.encoding.decode("latin-1"))
        if self.priority and self.priority not in _PRIORITY:
            _no_priority(self.priority)
        if len(self.key) > LONGEST_KEY:
            english, chinese = f"up to {LONGEST_KEY} characters long", f"至多 {LONGEST_KEY} 个字符"
            raise ScenariumError("SCN-4018", header="X-Scenarium-Key", value=f"{self.key[:40]}…", wanted_en=english, wanted_zh=chinese)

    def request(self, body: bytes, now: float, limit_ms: float, resolve: Callable[[Outcome], None]) -> Request:
        """The request for the queue.

        Raises:
            ScenariumError: SCN-4018 (no such priority).
        """
        request = Request(self.rid, body, now + limit_ms / 1000, resolve, now)
        if self.priority:
            request.priority = _PRIORITY.get(self.priority) or _no_priority(self.priority)
        request.content_type, request.language, request.trace, request.ident = self.content_type, self.language, self.trace, self.rid_header
        return request

    def deadline(self, configured: float) -> float:
        """Milliseconds that the request may take: the header's, at most the configured.

        Raises:
            ScenariumError: SCN-4018.
        """
        if not self.deadline_ms:
            return configured
        try:
            value = float(self.deadline_ms)
            if not 0 < value < float("inf"):
                raise ValueError
        except ValueError:
            shown = self.deadline_ms.decode("latin-1")
            raise ScenariumError(
                "SCN-4018", header="X-Scenarium-Deadline-Ms", value=shown, wanted_en="a number of milliseconds above 0", wanted_zh="大于 0 的毫秒数"
            ) from None
        return min(value, configured)


def _no_priority(value: bytes) -> Priority:
    shown = value.decode("latin-1")
    raise ScenariumError("SCN-4018", header="X-Scenarium-Priority", value=shown, wanted_en="high, normal or low", wanted_zh="high、normal 或 low")


async def read_body(receive: Receive, limit: int, length: int, name: str) -> bytes:
    """The whole body.

    Raises:
        ScenariumError: SCN-4012 (larger than ``limit``).
        Disconnected: the client left.
    """
    if length > limit:
        raise ScenariumError("SCN-4012", limit=limit, name=name)
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body"):
        if len(body) > limit:
            raise ScenariumError("SCN-4012", limit=limit, name=name)
        return body
    parts, size = [body], len(body)
    while message.get("more_body") or message["type"] != "http.request":
        if message["type"] == "http.disconnect":
            raise Disconnected
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise ScenariumError("SCN-4012", limit=limit, name=name)
        parts.append(part)
    return b"".join(parts)


def body_key(body: bytes, pointer: str) -> str:
    """The routing key that a JSON pointer finds in a body; empty where there is none. The only parsing in the gateway's hot path,
    and only for scenarios that name such a pointer and for bodies up to ``LARGEST_KEYED``."""
    if len(body) > LARGEST_KEYED:
        return ""
    try:
        value = json.loads(body)
        for part in pointer.strip("/").split("/"):
            value = value[part.replace("~1", "/").replace("~0", "~")]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""  # the worker says what is wrong with it
    return str(value)[:LONGEST_KEY].encode("utf8", "replace").decode()  # half of a surrogate pair, which the worker refuses, has no bytes


Answer = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers (all but the body's length) and body of an answer."""


def problem(error: ScenariumError, call: Call, version: int = 0) -> Answer:
    """The answer with problem details."""
    headers = [PROBLEM, (b"x-request-id", call.rid_header), *getattr(error, "headers", ())]
    if version:
        headers.append((b"x-scenarium-version", b"%d" % version))
    if error.status == 503:
        headers.append(RETRY_AFTER)
    if error.status == 415:
        headers.append((b"accept-encoding", b"identity"))  # RFC 9110, 12.5.3
    if error.status == 426:
        headers.append((b"upgrade", b"websocket"))
    if error.status == 405:
        headers.append((b"allow", b"POST"))
    if error.status == 413 or (error.status in (401, 403, 415, 429) and call.length > UNREAD):
        headers.append((b"connection", b"close"))
    return error.status, headers, problems.body(error, call.language)


async def send_problem(send: Send, error: ScenariumError, call: Call, version: int = 0) -> None:
    """Answer with problem details."""
    await send_body(send, *problem(error, call, version))


def routing_key(service: Service, call: Call, body: bytes) -> str:
    """What decides which worker answers: the header's key, else what the manifest's pointer finds in the body."""
    return call.key or (service.route_key and body_key(body, service.route_key)) or ""


async def send_body(send: Send, status: int, headers: list[tuple[bytes, bytes]], content: bytes) -> None:
    """A whole answer."""
    headers.append((b"content-length", b"%d" % len(content)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _with_headers(send: Send, more: list[tuple[bytes, bytes]]) -> Send:
    async def extended(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] += more
        await send(message)

    return extended


class Endpoint:
    """What the hot routes share. Each is an ASGI app."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._watchers: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope["headers"])
        audit, entry = self.gateway.audit, None
        try:
            if scope["method"] != "POST":
                raise ScenariumError("SCN-4016", method=scope["method"], path=scope["path"])
            name = scope["path_params"]["name"]
            caller = await self.gateway.admission.admit(call, name)
            call.check()
            if caller.key and caller.key.rate:
                send = _with_headers(send, self.gateway.admission.limits.headers(caller.key, time.monotonic()))
            if audit:
                audit.check()
                entry = Entry("POST", scope["path"], name, caller)
                receive, send = entry.receive(receive), entry.send(send)
            await self.answer(self.gateway.service(name), call, receive, send)
        except ScenariumError as error:
            await send_problem(send, error, call)
        except Disconnected:
            return
        finally:
            scope["caller"] = call.caller
            if audit and entry:
                audit.put(entry)

    async def answer(self, service: Service, call: Call, receive: Receive, send: Send) -> None:
        """Handle one request of a known scenario."""
        raise NotImplementedError

    def watcher(self, service: Service | Cache, request: Request, receive: Receive) -> Any:
        """A function that starts to watch for the client's leaving, of which ``service`` is told."""

        async def watch() -> None:
            while not request.done:
                message = await receive()
                if message["type"] == "http.disconnect":
                    service.cancel(request)
                    return

        def start() -> None:
            task = asyncio.get_running_loop().create_task(watch())
            self._watchers.add(task)
            task.add_done_callback(self._watchers.discard)

        return start


class Predict(Endpoint):
    """``POST /scenarios/{name}/predict``."""

    async def answer(self, service: Service, call: Call, receive: Receive, send: Send) -> None:
        if service.fault:
            raise service.fault
        config = service.config
        limit_ms = call.deadline(config.deadline_ms)
        body = await read_body(receive, config.max_body_bytes, call.length, service.name)
        now = time.monotonic()
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        request = call.request(body, now, limit_ms, partial(settle, future))
        request.key = routing_key(service, call, body)
        found: Found | None = None
        if config.cache_size:
            request.watch = self.watcher(service.cache, request, receive)
            found = service.look_up(request, await digest(body))
        else:
            request.watch = self.watcher(service, request, receive)
            service.submit(request)
        try:
            outcome = await future
        except asyncio.CancelledError:  # the drain's time is up
            (service.cache if found else service).cancel(request)
            raise
        await send_body(send, *reply(service, call, request, outcome, limit_ms, found))


def reply(service: Service, call: Call, request: Request, outcome: Outcome, limit_ms: float, found: Found | None = None) -> Answer:
    """Count how a request ended; the answer that tells it.

    Raises:
        Disconnected: the client left, so nobody needs to be told.
    """
    if outcome.failure is not None:
        return problem(failed(service, request, outcome, limit_ms), call, outcome.version)
    count_answer(service, request, outcome, found)
    headers = [JSON if outcome.status < 400 else PROBLEM, (b"x-request-id", call.rid_header), (b"x-scenarium-version", b"%d" % outcome.version)]
    if found:
        headers.append((b"x-scenarium-cache", found.encode()))
    if outcome.status == 503:
        headers.append(RETRY_AFTER)
    return outcome.status, headers, outcome.body


def count_answer(service: Service, request: Request, outcome: Outcome, found: Found | None = None) -> None:
    """Count a request that its worker answered, with an answer or an error; ``found``: as the scenario's cache says."""
    if found in ("hit", "joined"):
        service.stats.shared(outcome.status, time.monotonic() - request.entered)
    else:
        service.stats.answered(outcome.status, time.monotonic() - request.entered, request.sent - request.entered, outcome.times)
    if service.queued and found != "hit" and found != "joined":
        service.queued(request)
    if outcome.status >= 500:
        logs.event("error", "request_failed", scenario=service.name, **request.about(), status=outcome.status)


def failed(service: Service, request: Request, outcome: Outcome, limit_ms: float) -> ScenariumError:
    """Count a request that its worker did not answer; the error that stands for it.

    Raises:
        Disconnected: the client left, so nobody needs to be told.
    """
    service.stats.failed(outcome.failure)
    if service.queued:
        service.queued(request)
    if outcome.failure == "cancelled":
        raise Disconnected
    error = problems.of_failure(service, outcome, limit_ms)
    about = {"scenario": service.name, **request.about(), "code": error.code}
    if outcome.failure == "busy":
        logs.many("warning", "request_failed", f"busy {service.name}", **about)
    else:
        logs.event("warning", "request_failed", **about)
    return error
