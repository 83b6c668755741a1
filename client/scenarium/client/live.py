"""A camera or a sensor: frames out, answers in, over one WebSocket of a gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlencode

from scenarium.client.answers import Answer
from scenarium.client.errors import ScenariumAPIError, ScenariumConnectionError, of_problem, seconds
from scenarium.client.payloads import Value, binary, to_json

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

M = TypeVar("M")
ENDED = (1000, 1001)
"""Codes of an end without a fault: ours, and a gateway that goes away."""


@dataclass(frozen=True)
class Seen(Generic[M]):
    """What became of one frame."""

    frame: int
    """Which of the sent frames it is, from 0."""
    dropped: int
    """How many frames were dropped since the answer before, because newer ones had come."""
    answer: M | None
    error: ScenariumAPIError | None
    version: int | None
    """The version that answered."""

    def value(self) -> M:
        """The answer.

        Raises:
            ScenariumAPIError: the frame's own error.
        """
        if self.error:
            raise self.error
        assert self.answer is not None
        return self.answer


class Live(Generic[M]):
    """An open connection: ``send`` frames, and iterate over what was seen of them. Both may go on at once, in two tasks.

    The iteration ends when either side closes in good order; ``code`` says how.

    Raises:
        ScenariumConnectionError: the connection broke, or the gateway ended it for a reason (1008: the key; 1009: a frame is too large; 1013: unloaded).
    """

    def __init__(self, socket: ClientConnection, into: Any, request_id: str | None) -> None:
        self._socket = socket
        self._into = into
        self.request_id = request_id
        """What the gateway's log calls the connection."""
        self.frames = 0
        """How many were sent."""

    @property
    def code(self) -> int | None:
        """With what it was closed; None: it is open."""
        return self._socket.close_code

    async def send(self, frame: Value) -> int:
        """Send one frame, in any form that ``predict`` takes; returns its number."""
        from websockets.exceptions import ConnectionClosed

        file = binary(frame)
        try:
            await self._socket.send(to_json(frame).decode() if file is None else file)
        except ConnectionClosed as fault:
            raise ScenariumConnectionError(str(fault)) from fault
        self.frames += 1
        return self.frames - 1

    async def close(self) -> None:
        """End it; the frame that is worked on is cancelled."""
        await self._socket.close()

    async def __aiter__(self) -> AsyncIterator[Seen[M]]:
        from websockets.exceptions import ConnectionClosed

        try:
            async for message in self._socket:
                yield self._seen(json.loads(message))
        except ConnectionClosed as fault:
            raise ScenariumConnectionError(str(fault)) from fault
        if self._socket.close_code not in ENDED:
            raise ScenariumConnectionError(f"closed with {self._socket.close_code} {self._socket.close_reason}".strip())

    def _seen(self, told: dict[str, Any]) -> Seen[M]:
        frame, dropped, version = told["frame"], told["dropped"], told["version"]
        if "error" in told:
            error = of_problem(told["error"], f"{self.request_id}.{frame}")
            error.retry_after = told.get("retry_after")
            return Seen(frame, dropped, None, error, version)
        found = Answer(told["answer"])
        found.version, found.request_id = version, f"{self.request_id}.{frame}"
        into = self._into
        return Seen(frame, dropped, found if into is None else into.model_validate_json(json.dumps(found)), None, version)


async def opened(url: str, path: str, headers: dict[str, str], max_lag: int | None, into: Any, timeout: float) -> Live[Any]:
    """A connection.

    Raises:
        ScenariumAPIError: the gateway refuses it.
        ScenariumConnectionError: nobody answers.
    """
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidHandshake, InvalidStatus

    query = f"?{urlencode({'max_lag': max_lag})}" if max_lag is not None else ""
    agent = headers.pop("user-agent")
    try:
        socket = await connect(
            f"ws{url.removeprefix('http')}{path}{query}",
            additional_headers=headers,
            user_agent_header=agent,
            compression=None,  # pictures are packed already
            max_size=None,  # an answer is as large as it is
            open_timeout=timeout,
        )
    except InvalidStatus as fault:
        response = fault.response
        try:
            problem = json.loads(bytes(response.body or b""))
        except ValueError:
            problem = {"title": f"{response.status_code} {response.reason_phrase}"}
        found = response.headers
        raise ScenariumAPIError(problem, response.status_code, found.get("x-request-id"), seconds(found.get("retry-after"))) from fault
    except (OSError, InvalidHandshake) as fault:
        raise ScenariumConnectionError(f"{url}: {fault or type(fault).__name__}") from fault
    return Live(socket, into, socket.response.headers.get("x-request-id") if socket.response else None)
