"""The requests that one request of the API becomes: they run beside each other and end together."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from scenarium.core.errors import ScenariumError
from scenarium.gateway.predict import Call, count_answer, failed, routing_key
from scenarium.gateway.stream import Parts

if TYPE_CHECKING:
    from starlette.types import Receive

    from scenarium.gateway.requests import Request
    from scenarium.gateway.services import Service


class Failed(Exception):
    """One choice has no answer; ``problem`` are its problem details."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(problem["title"])
        self.problem = problem


class Choices:
    """All choices of one request."""

    def __init__(self, service: Service, call: Call, bodies: list[bytes], stream: bool, limit_ms: float) -> None:
        self.service, self.call, self.limit_ms = service, call, limit_ms
        self.news = asyncio.Event()
        self.requests: list[Request] = []
        self.parts: list[Parts] = []
        self.version = 0
        """That answered; 0: none did."""
        for number, body in enumerate(bodies):
            parts = Parts(service)
            parts.news = self.news  # whichever has some
            own = call if not number else _beside(call, number)
            request = parts.request = own.request(body, time.monotonic(), limit_ms, parts.end)
            request.content_type = "application/json"
            request.key = routing_key(service, call, body)
            if stream:
                request.stream = parts.put
            self.parts.append(parts)
            self.requests.append(request)

    def start(self, receive: Receive) -> None:
        """Put them into the queue, and look for the client's leaving."""
        self._watch = asyncio.create_task(self._look(receive))
        for request in self.requests:
            self.service.submit(request)

    def close(self) -> None:
        """Give up what is still open."""
        self._watch.cancel()
        for request in self.requests:
            if not request.done:
                self.service.cancel(request)

    async def _look(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        for request in self.requests:
            self.service.cancel(request)

    async def ended(self) -> list[dict[str, Any]]:
        """The whole answers.

        Raises:
            Failed, ScenariumError: one has none. Disconnected: the client left.
        """
        async for _ in self.pieces():
            pass
        return [json.loads(parts.outcome.body) for parts in self.parts if parts.outcome]

    async def pieces(self) -> AsyncGenerator[tuple[int, dict[str, Any]], None]:
        """The parts of all choices as they come, with the number of the choice.

        Raises:
            Failed, ScenariumError: one has no answer, or none to its end. Disconnected: the client left.
        """
        left = dict(enumerate(self.parts))
        while left:
            self.news.clear()
            for number, parts in list(left.items()):
                waiting = list(parts.waiting)
                parts.waiting.clear()
                parts.size = 0
                for part in waiting:
                    self._served_by(parts)
                    yield number, json.loads(part)
                if parts.outcome and not parts.waiting:
                    del left[number]
                    self._check(parts)
            if left:
                await self.news.wait()

    def _served_by(self, parts: Parts) -> None:
        if parts.outcome:
            self.version = parts.outcome.version
        elif parts.request and parts.request.slot:
            self.version = parts.request.slot.slot.version

    def _check(self, parts: Parts) -> None:
        outcome, request = parts.outcome, parts.request
        assert outcome is not None
        assert request is not None
        self.version = outcome.version or self.version
        if outcome.failure:
            raise failed(self.service, request, outcome, self.limit_ms)
        count_answer(self.service, request, outcome)
        if outcome.status >= 400:
            raise Failed(json.loads(outcome.body))


def _beside(call: Call, number: int) -> Call:
    """The call of a further choice: everything as in the first, but the id."""
    found = Call([])
    found.language, found.trace, found.priority = call.language, call.trace, call.priority
    found.rid_header = b"%s.%d" % (call.rid_header, number)
    return found


def problem_of(fault: ScenariumError | Failed, language: str) -> dict[str, Any]:
    """The problem details of what went wrong."""
    return fault.problem if isinstance(fault, Failed) else fault.problem(language)
