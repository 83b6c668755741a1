"""Small requests to ``/scenarios/{name}/predict``, answered by their connection itself.

uvicorn makes a scope, a cycle and a task for every request, and takes the answer apart and together again. With a small model that is a
third of what a request costs the gateway. A request that needs none of it, which is nearly every one, is taken here: its body goes to the
queue from where the parser found its end, and its answer to the socket from where the worker's was read. Everything else goes the
ASGI way, through the same functions of ``predict``, to the same answer.
"""

from __future__ import annotations

import re
import time
import traceback
from typing import TYPE_CHECKING

from scenarium.core.errors import ScenariumError
from scenarium.gateway import logs
from scenarium.gateway.admission import UNREAD
from scenarium.gateway.predict import Answer, Call, Disconnected, problem, reply, routing_key
from scenarium.gateway.requests import Outcome, Request

if TYPE_CHECKING:
    from scenarium.gateway.app import Gateway
    from scenarium.gateway.connections import Connection
    from scenarium.gateway.services import Service

_PATH = re.compile(rb"/scenarios/([\w.-]+)/predict")
LARGEST = UNREAD
"""Bytes of a body at most: it is kept here until it is whole, and who calls is asked only then."""


def take(gateway: Gateway, connection: Connection) -> Direct | None:
    """The request whose headers are complete, where its connection can answer it.

    Not where something watches requests as ASGI applications (access log, traces), where the audit log holds them, where counts lie in a
    Redis, or where answers are kept: those wait for other things than a worker.
    """
    if gateway.audit or gateway.access_log or gateway.tracing or gateway.admission.shared or connection.flow.write_paused:
        return None
    parser, found = connection.parser, _PATH.fullmatch(connection.url)
    if found is None or parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
        return None
    if connection.expect_100_continue or parser.should_upgrade():
        return None
    name = found[1].decode()
    service = gateway.services.get(name)
    call = Call(connection.headers)
    if service is None or service.config.cache_size or not 0 < call.length <= LARGEST:
        return None
    return Direct(connection, gateway, service, call, parser.should_keep_alive())


class Direct:
    """One such request, from its headers to its answer. It stands where uvicorn's protocol keeps its cycle, and has what that reads and writes of one."""

    __slots__ = (
        "body",
        "call",
        "connection",
        "disconnected",
        "gateway",
        "keep_alive",
        "limit_ms",
        "limits",
        "more_body",
        "request",
        "response_complete",
        "response_started",
        "service",
    )

    def __init__(self, connection: Connection, gateway: Gateway, service: Service, call: Call, keep_alive: bool) -> None:
        self.connection = connection
        self.gateway = gateway
        self.service = service
        self.call = call
        self.keep_alive = keep_alive
        self.body = b""
        self.more_body = True
        self.disconnected = self.response_started = self.response_complete = False
        self.request: Request | None = None
        self.limits: list[tuple[bytes, bytes]] = []
        """Headers that tell what is left of the key's rate."""
        self.limit_ms = 0.0

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
                self._ask()
            except ScenariumError as error:
                self._answer(problem(error, self.call))
            except Exception as fault:
                self._crashed(fault)

    def _ask(self) -> None:
        call, service = self.call, self.service
        caller = self.gateway.admission.admit_here(call, service.name)
        call.check()
        now = time.monotonic()
        if caller.key:
            self.limits = self.gateway.admission.limits.headers(caller.key, now)
        if service.fault:
            raise service.fault
        config = service.config
        if len(self.body) > config.max_body_bytes:
            raise ScenariumError("SCN-4012", limit=config.max_body_bytes, name=service.name)
        self.limit_ms = call.deadline(config.deadline_ms)
        self.request = call.request(self.body, now, self.limit_ms, self._end)
        self.request.key = routing_key(service, call, self.body)
        service.submit(self.request)

    def _end(self, outcome: Outcome) -> None:
        """The request has ended. Called from within the queue, which no fault of an answer may reach."""
        assert self.request
        try:
            self._answer(reply(self.service, self.call, self.request, outcome, self.limit_ms))
        except Disconnected:
            self.response_complete = True
        except Exception as fault:
            self._crashed(fault)

    def _crashed(self, fault: Exception) -> None:
        """A fault of our own: a 500 with a code, and the traceback in the log."""
        logs.event("error", "gateway_fault", request_id=self.call.rid_header.decode("latin-1"), traceback="".join(traceback.format_exception(fault)))
        if not self.response_complete:
            self._answer(problem(ScenariumError("SCN-4019", reason=f"{type(fault).__name__}: {fault}"), self.call))

    def _answer(self, answer: Answer) -> None:
        status, headers, content = answer
        self.response_started = self.response_complete = True
        self.connection.answer(status, [*headers, *self.limits], content, self.keep_alive)
