"""One inference, whichever protocol brought it: what concerns the gateway is read from its header, the rest goes to a worker as it is.

The header is parsed here only where it holds a word that concerns the gateway (``WORDS``): the worker reads and checks it anyway, and a
large JSON tensor would hold up every other request meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from scenarium.core.errors import ScenariumError
from scenarium.core.tensors import HEAD, LENGTH, Malformed, read_header
from scenarium.gateway.kserve.refusals import of_problem
from scenarium.gateway.kserve.shared_memory import Part, Regions
from scenarium.gateway.kserve.statistics import Statistics
from scenarium.gateway.predict import body_key, count_answer, failed
from scenarium.gateway.requests import settle

if TYPE_CHECKING:
    from scenarium.gateway.kserve.models import Model
    from scenarium.gateway.predict import Call
    from scenarium.gateway.requests import Outcome, Request

WORDS = (b'"priority"', b'"timeout"', b'"shared_memory_region"')
PRIORITIES = {0: b"normal", 1: b"high", 2: b"normal"}
"""Triton's priorities, 1 the highest and 0 the model's default; from 3 on: low."""


class Reply(NamedTuple):
    """A whole answer."""

    body: bytes
    length: int
    """Of its header; 0: it is all JSON."""
    version: int


class Begun(NamedTuple):
    """One inference that may be submitted."""

    model: Model
    request: Request
    limit_ms: float
    placed: dict[str, Part]
    """Outputs that go into shared memory."""


class Inference:
    """What all inferences of one gateway share."""

    def __init__(self) -> None:
        self.regions = Regions()
        self.statistics = Statistics()

    async def run(self, model: Model, call: Call, body: bytes, length: int, watch: Callable[[Request], Callable[[], None]] | None = None) -> Reply:
        """The answer to one request; ``length`` is that of its header, 0 where it is the whole body. ``watch`` makes what looks for the
        client's leaving; without it the caller cancels.

        Raises:
            ScenariumError, Refusal: there is no answer.
            Disconnected: the client left.
        """
        ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        begun = self.begin(model, call, body, length, partial(settle, ended))
        if watch:
            begun.request.watch = watch(begun.request)
        model.service.submit(begun.request)
        try:
            outcome = await ended
        except asyncio.CancelledError:
            model.service.cancel(begun.request)
            raise
        return self.reply(begun, outcome)

    def begin(self, model: Model, call: Call, body: bytes, length: int, resolve: Callable[[Outcome], None]) -> Begun:
        """The request of one inference, which ends with ``resolve`` once it is submitted.

        Raises:
            ScenariumError: it cannot be answered.
        """
        service = model.service
        if service.fault:
            raise service.fault
        if model.form == "stream":
            raise ScenariumError("SCN-4205", name=model.name, scenario=service.name)
        limit_ms = call.deadline(service.config.deadline_ms)
        placed: dict[str, Part] = {}
        if any(body.find(word, 0, length or len(body)) >= 0 for word in WORDS):
            header = read_header(body[: length or len(body)])
            limit_ms = policy(header.get("parameters"), call, limit_ms)
            body, length, placed = self.regions.inline(header, body, length)
        request = call.request(body, time.monotonic(), limit_ms, resolve)
        request.infer, request.content_type = True, f"{length} {model.name}"
        request.key = call.key or (service.route_key and model.form == "predict" and routing_key(body, length, service.route_key)) or ""
        return Begun(model, request, limit_ms, placed)

    def reply(self, begun: Begun, outcome: Outcome) -> Reply:
        """Count how an inference ended; its answer.

        Raises:
            ScenariumError, Refusal: there is no answer.
            Disconnected: the client left.
        """
        model, request, limit_ms, placed = begun
        service = model.service
        figures = self.statistics.of(model.name, str(outcome.version or service.served))
        seconds = time.monotonic() - request.entered
        if outcome.failure:
            figures.failed(seconds)
            raise failed(service, request, outcome, limit_ms)
        count_answer(service, request, outcome)
        if outcome.status >= 400:
            figures.failed(seconds)
            raise of_problem(json.loads(outcome.body), outcome.version)
        length, rows, run = HEAD.unpack_from(outcome.body)
        figures.answered(seconds, request.sent - request.entered, outcome.times, rows, run)
        body = outcome.body[HEAD.size :]
        if placed:
            body, length = self.regions.place(body, length, placed)
        return Reply(body, length, outcome.version)


def routing_key(body: bytes, length: int, pointer: str) -> str:
    """The routing key of the first predict request in a body, as ``predict.body_key`` has it; empty where there is none."""
    try:
        tensor = read_header(body[: length or len(body)])["inputs"][0]
        if "data" in tensor:
            return body_key(tensor["data"][0].encode(), pointer)
        (size,) = LENGTH.unpack_from(body, length)
        return body_key(body[length + LENGTH.size : length + LENGTH.size + size], pointer)
    except (ScenariumError, LookupError, TypeError, AttributeError, struct.error):
        return ""  # the worker says what is wrong with it


def policy(parameters: Any, call: Call, limit_ms: float) -> float:
    """Take priority and time-out (microseconds) from a request's parameters, as Triton's schedule policy has them; the milliseconds that it may take.

    Raises:
        Malformed: one is no whole number, or negative.
    """
    if not isinstance(parameters, dict):
        return limit_ms
    priority, timeout = parameters.get("priority", 0), parameters.get("timeout", 0)
    if any(type(each) is not int or each < 0 for each in (priority, timeout)):
        raise Malformed("has a priority or a timeout that is no whole number from 0 on", "的 priority 或 timeout 不是非负整数")
    if priority:
        call.priority = PRIORITIES.get(priority, b"low")
    return min(limit_ms, timeout / 1000) if timeout else limit_ms
