"""``GET /scenarios/{name}/live``: a WebSocket for a camera or a sensor, whose newest frame matters and whose old ones do not.

The client sends frames: a binary message is a raw body of ``/predict``, a text message its JSON. One frame is worked on at a time; at most
``max_lag`` others wait, and when one more comes the oldest of them is dropped. So the lag is bounded, whatever the client sends, and a
connection takes no more of a scenario than one client that waits for its answers. Each answer is a text message:

    {"frame": 17, "dropped": 2, "status": 200, "version": 3, "answer": {…}}
    {"frame": 18, "dropped": 0, "status": 422, "version": 3, "error": {…}}

``frame`` counts what the client sent, from 0; ``dropped`` what was dropped since the answer before. A frame that fails is an answer, with
problem details, and no end. A frame that is worked on is a request like any other: key, limits, audit log, deadline, metrics.

The connection ends with 1000 or whatever the client says; 1001: the gateway ends or serves the scenario no more; 1008: the key is no longer
valid; 1009: a frame is larger than ``serve.max_body_bytes``; 1011: the gateway failed; 1013: the scenario was unloaded, try again later.

A browser can set no header: it gives its key as a subprotocol, ``new WebSocket(url, ["scenarium", "scenarium.key." + key])``. A key in the
URL is refused, since URLs are logged. Without a key, a page of another origin is refused too.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import traceback
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import parse_qsl

from scenarium.core.errors import ScenariumError
from scenarium.gateway import logs, problems
from scenarium.gateway.audit import Entry
from scenarium.gateway.limits import Limited
from scenarium.gateway.predict import Call, Disconnected, count_answer, failed, routing_key, send_problem
from scenarium.gateway.requests import Outcome, Request, settle

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from scenarium.gateway.app import Gateway
    from scenarium.gateway.services import Service
    from scenarium.gateway.sockets import Socket

PROTOCOL = "scenarium"
KEY = "scenarium.key."
LAG, MOST_LAG = 1, 16
"""Frames that may wait: unless told otherwise, and at most."""
TICK_S = 1.0
GOING_AWAY, POLICY, FAULT, LATER = 1001, 1008, 1011, 1013


class Frame(NamedTuple):
    """What the client sent."""

    number: int
    body: bytes
    content_type: str
    came: float


class Live:
    """The endpoint."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.sessions: set[Session] = set()
        self._watching: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope["headers"])
        if scope["type"] == "http":
            await send_problem(send, ScenariumError("SCN-4021", path=scope["path"]), call)
            return
        await receive()  # the connection's beginning
        try:
            if scope["path_params"] is None:
                raise ScenariumError("SCN-4015", path=scope["path"])
            session = await self._let_in(scope, call, send)
        except ScenariumError as error:
            await send_problem(_refusing(send), error, call)
            return
        socket = cast("Socket", scope["extensions"]["scenarium.socket"])
        socket.limit(session.service.config.max_body_bytes)
        socket.leave = session.leave
        chosen = PROTOCOL if PROTOCOL in scope["subprotocols"] else None
        await send({"type": "websocket.accept", "subprotocol": chosen, "headers": [(b"x-request-id", call.rid_header)]})
        self.sessions.add(session)
        self._watching = self._watching or asyncio.create_task(self._watch())
        try:
            await session.run(receive)
        finally:
            self.sessions.discard(session)
            if not self.sessions and self._watching:
                self._watching.cancel()
                self._watching = None

    async def _let_in(self, scope: Scope, call: Call, send: Send) -> Session:
        """The session of a client that may have one.

        Raises:
            ScenariumError: SCN-4101 and others of ``Admission.admit``, SCN-4115 (a page of another origin), SCN-4129 (a parameter), SCN-4018 (a
                header), SCN-4114 (no audit log), SCN-4013 (the gateway ends), or why the scenario cannot answer.
        """
        gateway, name = self.gateway, scope["path_params"]["name"]
        offered = (protocol.removeprefix(KEY) for protocol in scope["subprotocols"] if protocol.startswith(KEY))
        call.credential = call.credential or next(offered, "").encode("latin-1")
        scope["caller"] = call.caller = caller = await gateway.admission.admit(call, name)
        origin = next((value for header, value in scope["headers"] if header == b"origin"), b"")
        gateway.admission.check_origin(caller, origin, call.host)
        call.check()
        lag, limit_ms = _query(scope["query_string"])
        if gateway.draining:
            raise ScenariumError("SCN-4013")
        if gateway.audit:
            gateway.audit.check()
        service = gateway.service(name)
        if service.fault:
            raise service.fault
        call.deadline(service.config.deadline_ms)  # what is wrong with it
        return Session(self, service, call, scope["path"], lag, limit_ms, send)

    async def _watch(self) -> None:
        """End sessions that may not go on, though their clients send nothing."""
        while True:
            await asyncio.sleep(TICK_S)
            for session in list(self.sessions):
                session.look()


class Session:
    """One client."""

    def __init__(self, live: Live, service: Service, call: Call, path: str, lag: int, limit_ms: float, send: Send) -> None:
        self.gateway = live.gateway
        self.service = service
        self.call = call
        self.path = path
        self.lag = lag
        self.limit_ms = limit_ms
        self.send = send
        self.waiting: deque[Frame] = deque()
        self.frames = 0
        """How many came."""
        self.dropped = 0
        """How many were dropped since the last answer."""
        self.news = asyncio.Event()
        self.gone = False
        """Whether the client left."""
        self.ending = 0
        """The code with which it is to end; 0: not yet."""
        self.request: Request | None = None
        """The frame that is worked on."""

    async def run(self, receive: Receive) -> None:
        """Answer until one side ends it."""
        figures = self.service.stats.live
        figures.open += 1
        reader = asyncio.create_task(self._read(receive))
        try:
            await self._answer_all()
        except Disconnected:
            self.gone = True
        except Exception as fault:
            logs.event("error", "gateway_fault", request_id=self.call.rid_header.decode(), traceback="".join(traceback.format_exception(fault)))
            self.ending = FAULT
        finally:
            reader.cancel()
            figures.open -= 1
        if not self.gone:
            with contextlib.suppress(Disconnected):
                await self._say({"type": "websocket.close", "code": self.ending, "reason": ""})
        about = {"scenario": self.service.name, "request_id": self.call.rid_header.decode(), "key": self.call.caller.id or None}
        logs.event("info", "live_ended", **about, frames=self.frames, code=None if self.gone else self.ending)

    async def _answer_all(self) -> None:
        while True:
            await self.news.wait()
            if self.gone:
                return
            if self.ending:
                self._drop(len(self.waiting))
                return
            frame = self.waiting.popleft()
            if not self.waiting:
                self.news.clear()
            text = await self._answer(frame)
            if not self.gone:
                await self._say({"type": "websocket.send", "text": text.decode()})

    async def _say(self, message: Message) -> None:
        """Send as soon as the client takes it.

        Raises:
            Disconnected: it left.
        """
        try:
            await self.send(message)
        except OSError as fault:
            raise Disconnected from fault

    async def _read(self, receive: Receive) -> None:
        """Take in what the client sends, as it comes."""
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self.gone = True
                if self.request:
                    self.service.cancel(self.request)
                self.news.set()
                return
            self._put(message)

    def _put(self, message: Message) -> None:
        text = message.get("text")
        kind = "application/octet-stream" if text is None else "application/json"
        if len(self.waiting) >= self.lag:
            self._drop(1)
        self.waiting.append(Frame(self.frames, message["bytes"] if text is None else text.encode(), kind, time.monotonic()))
        self.frames += 1
        self.news.set()

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self.waiting.popleft()
        self.dropped += count
        self.service.stats.live.frames["dropped"] += count

    def leave(self, code: int = GOING_AWAY) -> None:
        """End it after the frame that is worked on."""
        self.ending = self.ending or code
        self.news.set()

    def look(self) -> None:
        """See whether it may go on."""
        admission = self.gateway.admission
        if self.gateway.services.get(self.service.name) is not self.service:
            self.leave(GOING_AWAY)
        elif self.service.unloaded:
            self.leave(LATER)
        elif admission.keyring.asked and admission.keyring.find(self.call.credential.decode("latin-1")) is None:
            self.leave(POLICY)

    # ── one frame ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _answer(self, frame: Frame) -> bytes:
        """The message that answers a frame.

        Raises:
            Disconnected: the client left.
        """
        ident = b"%s.%d" % (self.call.rid_header, frame.number)
        audit = self.gateway.audit
        entry = Entry("GET", self.path, self.service.name, self.call.caller) if audit else None
        wait = b""
        try:
            outcome = await self._ask(frame, ident)
            status, version, body = outcome.status, outcome.version, outcome.body
        except ScenariumError as error:
            status, version, body = error.status, 0, problems.body(error, self.call.language)
            wait = b', "retry_after": %d' % math.ceil(error.wait) if isinstance(error, Limited) else b""
        dropped, self.dropped = self.dropped, 0
        member = b"answer" if status < 400 else b"error"
        self.service.stats.live.frames["answered" if status < 400 else "failed"] += 1
        if audit and entry:
            entry.body.add(frame.body, False)
            entry.answer.add(body, False)
            entry.status, entry.headers = status, [(b"x-request-id", ident), *([(b"x-scenarium-version", b"%d" % version)] if version else [])]
            audit.put(entry)
        head = b'{"frame": %d, "dropped": %d, "status": %d, "version": %s' % (frame.number, dropped, status, b"%d" % version if version else b"null")
        return b'%s%s, "%s": %s}' % (head, wait, member, body)

    async def _ask(self, frame: Frame, ident: bytes) -> Outcome:
        """The worker's answer.

        Raises:
            ScenariumError: there is none.
            Disconnected: the client left.
        """
        service, call = self.service, self.call
        if self.gateway.audit:
            self.gateway.audit.check()
        if frame.number:  # the first was counted when the client was let in
            await self.gateway.admission.charge(call.caller)
        if service.fault:
            raise service.fault
        if len(frame.body) > service.config.max_body_bytes:  # it was made smaller meanwhile
            raise ScenariumError("SCN-4012", limit=service.config.max_body_bytes, name=service.name)
        limit_ms = min(self.limit_ms, call.deadline(service.config.deadline_ms))
        item, now = Call([]), time.monotonic()
        item.language, item.trace, item.priority = call.language, call.trace, call.priority
        item.content_type, item.rid_header = frame.content_type, ident
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        request = self.request = item.request(frame.body, now, limit_ms - (now - frame.came) * 1000, partial(settle, future))
        request.key = routing_key(service, call, frame.body)
        service.submit(request)
        try:
            outcome = await future
        except asyncio.CancelledError:
            service.cancel(request)
            raise
        finally:
            self.request = None
        if outcome.failure:
            raise failed(service, request, outcome, limit_ms)
        count_answer(service, request, outcome)
        return outcome


def _query(query: bytes) -> tuple[int, float]:
    """``max_lag`` and ``deadline_ms``, which a browser cannot set by a header.

    Raises:
        ScenariumError: SCN-4129.
    """
    lag, limit_ms = LAG, math.inf
    for field, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if field == "max_lag":
            if not (value.isascii() and value.isdecimal() and 0 < int(value[:4]) <= MOST_LAG):
                raise ScenariumError("SCN-4129", field=field, value=value[:40], wanted_en=f"1 to {MOST_LAG}", wanted_zh=f" 1 至 {MOST_LAG}")
            lag = int(value)
        elif field == "deadline_ms":
            try:
                limit_ms = float(value)
            except ValueError:
                limit_ms = math.nan
            if not 0 < limit_ms < math.inf:
                raise ScenariumError("SCN-4129", field=field, value=value[:40], wanted_en="above 0", wanted_zh="大于 0 的数")
        else:
            raise ScenariumError("SCN-4116", field=field[:40])
    return lag, limit_ms


def _refusing(send: Send) -> Send:
    """Answers a handshake as HTTP, with problem details."""

    async def refused(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    return refused
