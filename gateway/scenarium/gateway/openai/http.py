"""``/v1/…``: the routes. Plain ASGI, found by their path as the other hot routes are."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from scenarium.core.errors import ScenariumError
from scenarium.gateway import logs
from scenarium.gateway.audit import Entry
from scenarium.gateway.openai import asking, models, refusals
from scenarium.gateway.openai.answering import Answer
from scenarium.gateway.openai.choices import Choices, Failed, problem_of
from scenarium.gateway.openai.upstream import Upstreams
from scenarium.gateway.predict import JSON, RETRY_AFTER, Call, Disconnected, Endpoint, read_body, send_body

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from scenarium.gateway.app import Gateway
    from scenarium.gateway.openai.asking import Asked
    from scenarium.gateway.openai.models import Form
    from scenarium.gateway.services import Service

ROOT = "/v1"
ASKED: dict[str, Form] = {"/v1/chat/completions": "chat", "/v1/completions": "completions", "/v1/embeddings": "embeddings"}
ROUTES = (*ASKED, "/v1/models", "/v1/models/{id}")
"""Every path, for the hand-book's test."""
LARGEST = 1 << 20
"""Bytes of a body: it is parsed here, which takes the event loop 10 ms a MB, from all scenarios. No prompt is so long."""
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


class V1(Endpoint):
    """All routes below ``/v1``."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway)
        self.upstreams = Upstreams()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope["headers"])
        path, method = scope["path"], scope["method"]
        entry: Entry | None = None
        audit = self.gateway.audit
        sent = _Sent(send)
        try:
            scope["caller"] = call.caller = self.gateway.admission.check(call, method, path)
            call.check()
            form = ASKED.get(path)
            if form is None:
                await send_body(send, 200, [JSON, (b"x-request-id", call.rid_header)], refusals.to_json(self._told(method, path)))
                return
            if method != "POST":
                raise ScenariumError("SCN-4016", method=method, path=path)
            if audit:
                audit.check()
                entry = Entry(method, path, None, call.caller)
                receive, sent.send = entry.receive(receive), entry.send(send)
            fields = asking.parse(await read_body(receive, LARGEST, call.length, "v1"))
            if fields["model"] in self.gateway.services:
                scope["scenario"] = fields["model"]
                if entry:
                    entry.scenario = fields["model"]
            await self._ask(form, fields, call, receive, sent)
        except ScenariumError as error:
            await refuse(sent, error.problem(call.language), call, headers=list(getattr(error, "headers", ())))
        except Disconnected:
            return
        except Exception as fault:  # a fault of our own, in the API's form
            logs.event("error", "gateway_fault", request_id=call.rid_header.decode("latin-1"), traceback="".join(traceback.format_exception(fault)))
            await refuse(sent, ScenariumError("SCN-4019", reason=f"{type(fault).__name__}: {fault}").problem(call.language), call)
        finally:
            if audit and entry:
                audit.put(entry)

    def _told(self, method: str, path: str) -> dict[str, Any]:
        """One model, or all."""
        kind, _, name = path[len(ROOT) :].strip("/").partition("/")
        if kind != "models":
            raise ScenariumError("SCN-4015", path=path)
        if method != "GET":
            raise ScenariumError("SCN-4016", method=method, path=path)
        if name:
            return models.shown(self.gateway, name)
        return {"object": "list", "data": [models.shown(self.gateway, each) for each in models.every(self.gateway)]}

    async def _ask(self, form: Form, fields: dict[str, Any], call: Call, receive: Receive, sent: _Sent) -> None:
        """Answer one request that was read."""
        name, admission = fields["model"], self.gateway.admission
        upstream = models.passed_on(self.gateway, name)
        if not upstream:
            models.find(self.gateway, name)
        caller = await admission.admit(call, name)
        if caller.key and caller.key.rate:
            sent.more = admission.limits.headers(caller.key, time.monotonic())
        if upstream:
            await self.upstreams.pass_on(form, upstream, fields, call, receive, sent)
            return
        service, manifest = models.find(self.gateway, name, form)
        asked = asking.read(fields, form, manifest)
        if service.fault:
            raise service.fault
        if asked.stream and not manifest.streams:
            raise ScenariumError("SCN-4005", name=name)
        limit_ms = call.deadline(service.config.deadline_ms)
        for _ in asked.bodies[1:]:  # each costs as much as a request of its own
            await admission.charge_in_turn(caller, limit_ms / 1000)
        await self._run(form, service, asked, call, limit_ms, receive, sent)

    async def _run(self, form: Form, service: Service, asked: Asked, call: Call, limit_ms: float, receive: Receive, sent: _Sent) -> None:
        answer = Answer(form, service.name, call.rid_header.decode("latin-1"), asked)
        choices = Choices(service, call, asked.bodies, asked.stream, limit_ms)
        choices.start(receive)
        try:
            if asked.stream:
                await _stream(answer, choices, call, sent)
            else:
                found = answer.whole(await choices.ended())
                await send_body(sent, 200, [JSON, *_about(call, choices.version)], refusals.to_json(found))
        except (ScenariumError, Failed) as fault:
            await refuse(sent, problem_of(fault, call.language), call, asked.names, choices.version, list(getattr(fault, "headers", ())))
        finally:
            choices.close()


class _Sent:
    """``send``, which knows whether the answer has begun."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.begun = False
        self.more: list[tuple[bytes, bytes]] = []
        """Headers beside the answer's own."""

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            message["headers"] = [*message["headers"], *self.more]
        await self.send(message)


async def _stream(answer: Answer, choices: Choices, call: Call, sent: _Sent) -> None:
    """The answer as server-sent events; it begins with the first part, so that an error before it has its status."""
    async with aclosing(choices.pieces()) as pieces:
        async for index, part in pieces:
            chunks = [*(() if sent.begun else answer.first()), *answer.chunks(index, part)]
            if not sent.begun:
                await sent({"type": "http.response.start", "status": 200, "headers": [EVENTS, (b"cache-control", b"no-cache"), *_about(call, choices.version)]})
            await sent({"type": "http.response.body", "body": b"".join(map(_event, chunks)), "more_body": True})
    await sent({"type": "http.response.body", "body": b"".join(map(_event, answer.last())) + b"data: [DONE]\n\n"})


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % refusals.to_json(chunk)


def _about(call: Call, version: int) -> list[tuple[bytes, bytes]]:
    return [(b"x-request-id", call.rid_header), *([(b"x-scenarium-version", b"%d" % version)] if version else [])]


async def refuse(
    sent: _Sent,
    problem: dict[str, Any],
    call: Call,
    names: Mapping[str, str] | None = None,
    version: int = 0,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    """Tell an error: as the answer, or as the last event of one that has begun."""
    found = refusals.error(problem, names)
    if sent.begun:
        await sent({"type": "http.response.body", "body": _event(found)})
        return
    status = refusals.status(problem)
    more = [JSON, *_about(call, version), *(headers or [])]
    if status == 503 and not headers:
        more.append(RETRY_AFTER)
    if status == 405:
        more.append((b"allow", b"GET" if call.length == 0 else b"POST"))
    if status in (401, 403, 413, 429):
        more.append((b"connection", b"close"))  # its body may not have been read
    await send_body(sent, status, more, refusals.to_json(found))
