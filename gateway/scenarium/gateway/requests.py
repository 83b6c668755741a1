"""One request on its way through the gateway, and how it may end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    import asyncio

    from scenarium.gateway.batching import _Worker

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")

Failure = Literal["busy", "deadline", "died", "poison", "cancelled", "slow", "stopped", "memory"]
"""Why a request ends without an answer of its worker: queue full; deadline passed; its worker died and the scenario is not pure; it was
alone at a second death; the client left, or reads its stream too slowly; the scenario stopped; there is no memory to load it."""


class Outcome(NamedTuple):
    """How a request ended."""

    status: int
    """HTTP status of the worker's answer; 0 where ``failure`` says why there is none."""
    body: bytes
    version: int = 0
    times: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Microseconds in the worker: queue, preprocess, forward, postprocess."""
    failure: Failure | None = None


def settle(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    """Tell who waits; whoever was cancelled waits no more."""
    if not future.done():
        future.set_result(outcome)


class Home(Protocol):
    """Where a request lies: a queue, or what stands for one."""

    def cancel(self, request: Request, failure: Failure = "cancelled") -> None:
        """End it without an answer."""


class Request:
    """One request in the gateway."""

    __slots__ = (
        "begun",
        "body",
        "content_type",
        "deadline",
        "done",
        "entered",
        "home",
        "ident",
        "infer",
        "key",
        "language",
        "priority",
        "queued",
        "resolve",
        "rid",
        "sent",
        "slot",
        "stream",
        "suspect",
        "trace",
        "watch",
    )

    def __init__(self, rid: int, body: bytes, deadline: float, resolve: Callable[[Outcome], None], entered: float) -> None:
        self.rid = rid
        self.body = body
        self.content_type = "application/json"
        self.deadline = deadline
        self.resolve = resolve
        self.entered = entered
        self.sent = 0.0
        self.language = "en"
        self.trace = ""
        self.ident = b""
        """The request id that client and logs see."""
        self.infer = False
        """Whether its body is tensors (``frames.INFER``)."""
        self.key = ""
        """Routing key: requests with one key go to one worker."""
        self.priority: Priority = "normal"
        self.stream: Callable[[bytes], None] | None = None
        """Takes the parts of a streamed answer; None: one answer."""
        self.begun = False
        """Whether a part came, so that it cannot be run again."""
        self.home: Home | None = None
        """What it was submitted to, and where it is cancelled."""
        self.slot: _Worker | None = None
        self.suspect = False
        self.queued = False
        self.done = False
        self.watch: Callable[[], None] | None = None
        """Starts to watch for the client's leaving; called once, when the request is no longer quick."""

    def about(self) -> dict[str, str]:
        """What log lines say of it."""
        found = {"request_id": self.ident.decode()}
        return {**found, "trace_id": self.trace[3:35]} if self.trace else found
