"""Small requests for one answer, to ``/scenarios/{name}/predict`` and ``/v2/models/{name}/infer``, answered by their connection itself.

uvicorn makes a scope, a cycle and a task for every request, and takes the answer apart and together again. With a small model that is a
third of what a request costs the gateway. A request that needs none of it, which is nearly every one, is taken here: its body goes to the
queue from where the parser found its end, and its answer to the socket from where the worker's was read. Everything else goes the
ASGI way, through the same functions, to the same answer.
"""

from __future__ import annotations

import re
import time
import traceback
from typing import TYPE_CHECKING, cast

from scenarium.core.errors import ScenariumError
from scenarium.gateway import logs
from scenarium.gateway.admission import UNREAD
from scenarium.gateway.kserve import models
from scenarium.gateway.kserve.http import answered, header_length, refused
from scenarium.gateway.kserve.refusals import Refusal, of_error
from scenarium.gateway.predict import Answer, Call, Disconnected, problem, reply, routing_key
from scenarium.gateway.requests import Outcome, Request

if TYPE_CHECKING:
    from starlette.types import Scope

    from scenarium.gateway.app import App, Gateway
    from scenarium.gateway.connections import Connection
    from scenarium.gateway.kserve.inference import Begun, Inference
    from scenarium.gateway.services import Service
    from scenarium.gateway.tracing import Tracing

_PREDICT = re.compile(rb"/scenarios/([\w.-]+)/predict")
_INFER = re.compile(rb"/v2/models/([\w.-]+)(?:/versions/([\w.-]+))?/infer")
LARGEST = UNREAD
"""Bytes of a body at most: it is kept here until it is whole, and who calls is asked only then."""


def take(app: App, connection: Connection) -> Direct | None:
    """The request whose headers are complete, where its connection can answer it.

    Not where something watches requests as ASGI applications (access log, a span that is sampled), where the audit log holds them, where counts
    lie in a Redis, or where answers are kept: those wait for other things than a worker.
    """
    gateway: Gateway = app.state.gateway
    if gateway.audit or gateway.access_log or gateway.admission.shared or connection.flow.write_paused:
        return None
    parser = connection.parser
    found = _PREDICT.fullmatch(connection.url) or _INFER.fullmatch(connection.url)
    if found is None or parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
        return None
    if connection.expect_100_continue or parser.should_upgrade():
        return None
    name, infers = found[1].decode(), found.re is _INFER
    service = gateway.services.get(models.scenario_of(gateway, name) if infers else name)
    call = Call(connection.headers)
    if service is None or not 0 < call.length <= LARGEST or (service.config.cache_size and not infers):
        return None
    length = b""
    if infers:
        for header, value in connection.headers:
            if header == b"inference-header-content-length":
                length = value
            elif header in (b"accept-encoding", b"content-encoding") and value != b"identity":
                return None
    if gateway.tracing:
        trace = _unsampled(gateway.tracing, app, connection)
        if trace is None:
            return None
        call.trace = trace
    if not infers:
        return _Predict(connection, gateway, service, call)
    return _Infer(connection, gateway, service, call, app.v2.inference, name, (found[2] or b"").decode(), length)


def _unsampled(tracing: Tracing, app: App, connection: Connection) -> str | None:
    """Begin the request's span: the trace context of one that is not sampled, else None, and the app finds it in its scope."""
    scope = cast("Scope", connection.scope)
    scope["method"], scope["path"] = "POST", connection.url.decode()
    span = tracing.begin(scope, app)
    if span.is_recording():
        scope["span"] = span
        return None
    return Call(scope["headers"]).trace


class Direct:
    """One such request, from its headers to its answer. It stands where uvicorn's protocol keeps its cycle, and has what that reads and writes of one."""

    def __init__(self, connection: Connection, gateway: Gateway, service: Service, call: Call) -> None:
        self.connection = connection
        self.gateway = gateway
        self.service = service
        self.call = call
        self.keep_alive = connection.parser.should_keep_alive()
        self.body = b""
        self.more_body = True
        self.disconnected = self.response_started = self.response_complete = False
        self.request: Request | None = None
        self.limits: list[tuple[bytes, bytes]] = []
        """Headers that tell what is left of the key's rate."""

    @property
    def message_event(self) -> Direct:
        """What the protocol sets when there is news."""
        return self

    def set(self) -> None:
        """There is more of the body, or all of it, or the client left."""
        if self.disconnected:
            if self.request:
                self.service.cancel(self.request)
        elif not (self.more_body or self.response_complete):
            try:
                self.gateway.admission.admit_here(self.call, self.service.name)
                self.request = self._made()
                self.service.submit(self.request)
            except Exception as fault:
                self._answer(self._told(fault))

    def _made(self) -> Request:
        """The request for the queue; it ends with ``_end``.

        Raises:
            ScenariumError: it cannot be answered.
        """
        raise NotImplementedError

    def _reply(self, outcome: Outcome) -> Answer:
        """What a request that ended so is answered.

        Raises:
            ScenariumError, Refusal: it cannot be answered.
            Disconnected: the client left.
        """
        raise NotImplementedError

    def _problem(self, error: ScenariumError) -> Answer:
        """The answer that tells an error."""
        raise NotImplementedError

    def _end(self, outcome: Outcome) -> None:
        """The request has ended. Called from within the queue, which no fault of an answer may reach."""
        try:
            answer = self._reply(outcome)
        except Disconnected:
            self.response_complete = True
            return
        except Exception as fault:
            answer = self._told(fault)
        self._answer(answer)

    def _told(self, fault: Exception) -> Answer:
        if isinstance(fault, Refusal):
            return refused(fault, self.call)
        if not isinstance(fault, ScenariumError):  # a fault of our own
            logs.event("error", "gateway_fault", request_id=self.call.rid_header.decode("latin-1"), traceback="".join(traceback.format_exception(fault)))
            fault = ScenariumError("SCN-4019", reason=f"{type(fault).__name__}: {fault}")
        return self._problem(fault)

    def _answer(self, answer: Answer) -> None:
        status, headers, content = answer
        self.response_started = self.response_complete = True
        self.connection.answer(status, [*headers, *self.limits], content, self.keep_alive)


class _Predict(Direct):
    """A prediction."""

    limit_ms = 0.0

    def _made(self) -> Request:
        call, service = self.call, self.service
        call.check()
        now = time.monotonic()
        if call.caller.key:
            self.limits = self.gateway.admission.limits.headers(call.caller.key, now)
        if service.fault:
            raise service.fault
        config = service.config
        self.limit_ms = call.deadline(config.deadline_ms)
        if len(self.body) > config.max_body_bytes:
            raise ScenariumError("SCN-4012", limit=config.max_body_bytes, name=service.name)
        request = call.request(self.body, now, self.limit_ms, self._end)
        request.key = routing_key(service, call, self.body)
        return request

    def _reply(self, outcome: Outcome) -> Answer:
        assert self.request
        return reply(self.service, self.call, self.request, outcome, self.limit_ms)

    def _problem(self, error: ScenariumError) -> Answer:
        return problem(error, self.call)


class _Infer(Direct):
    """A v2 inference whose body and answer are not packed."""

    begun: Begun

    def __init__(
        self, connection: Connection, gateway: Gateway, service: Service, call: Call, inference: Inference, name: str, version: str, length: bytes
    ) -> None:
        super().__init__(connection, gateway, service, call)
        self.inference = inference
        self.name, self.version = name, version
        self.length = length
        """Of the JSON header, as the client tells it."""

    def _made(self) -> Request:
        limit = self.service.config.max_body_bytes
        model = models.find(self.gateway, self.name, self.version)
        if len(self.body) > limit:
            raise ScenariumError("SCN-4012", limit=limit, name=self.service.name)
        self.begun = self.inference.begin(model, self.call, self.body, header_length(self.length, len(self.body)), self._end)
        return self.begun.request

    def _reply(self, outcome: Outcome) -> Answer:
        return answered(self.inference.reply(self.begun, outcome), self.call)

    def _problem(self, error: ScenariumError) -> Answer:
        return refused(of_error(error, self.call.language), self.call)
