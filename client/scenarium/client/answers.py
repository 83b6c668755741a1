"""What comes back: answers, elements of a batch, parts of a stream, scenarios, jobs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx

from scenarium.client.errors import ScenariumAPIError, ScenariumConnectionError, is_problem, of_problem

M = TypeVar("M")


class Answer(dict[str, Any]):
    """One answer: its fields, and what the gateway said beside them."""

    request_id: str | None = None
    """What the gateway's log calls the request."""
    version: int | None = None
    """The version that answered."""
    cached: bool = False
    """Whether the gateway had kept it."""


def answer(content: bytes, response: httpx.Response, into: Any) -> Any:
    """One of the answers that a response brings, as the caller wants it. A model reads JSON, where bytes are base64."""
    if into is not None:
        return into.model_validate_json(content)
    found = Answer(json.loads(content))
    found.request_id = response.headers.get("x-request-id")
    version = response.headers.get("x-scenarium-version", "")
    found.version = int(version) if version.isdecimal() else None
    found.cached = response.headers.get("x-scenarium-cache") == "hit"
    return found


@dataclass(frozen=True)
class Item(Generic[M]):
    """One element of a batch: its answer or its own error."""

    index: int
    """Which of the given elements it is, from 0."""
    answer: M | None
    error: ScenariumAPIError | None

    def value(self) -> M:
        """The answer.

        Raises:
            ScenariumAPIError: the element's own error.
        """
        if self.error:
            raise self.error
        assert self.answer is not None
        return self.answer


def items(response: httpx.Response, first: int, into: Any) -> Iterator[Item[Any]]:
    """The elements of a batch's answer, of which ``first`` is the number of the first."""
    for number, line in enumerate(response.content.split(b"\n")[:-1], first):
        problem = json.loads(line) if b"urn:scenarium:error:" in line else None
        if is_problem(problem):
            yield Item(number, None, of_problem(problem, response.headers.get("x-request-id")))
        else:
            yield Item(number, answer(line, response, into), None)


class Events:
    """Server-sent events (WHATWG HTML, 9.2) from the bytes of a stream, cut at line feeds alone: an answer's text may hold any other separator."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = "message"
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """Name and data of each event that is complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            field, _, value = line.rstrip(b"\r").partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
            elif field == b"event":
                self._name = value.strip().decode()
            elif not field and not value and self._data:
                yield self._name, b"\n".join(self._data)
                self._name, self._data = "message", []


class Parts:
    """The parts of a streamed answer, as the bytes come."""

    def __init__(self, response: httpx.Response, into: Any) -> None:
        self.response = response
        self.into = into
        self.ended = False
        """Whether the gateway said that this was all."""
        self._events = Events()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The parts that are complete.

        Raises:
            ScenariumAPIError: the stream ended with an error.
        """
        for name, content in self._events.feed(data):
            if name == "error":
                raise of_problem(json.loads(content), self.response.headers.get("x-request-id"))
            if name == "end":
                self.ended = True
                return
            yield answer(content, self.response, self.into)

    def close(self) -> None:
        """The bytes are over.

        Raises:
            ScenariumConnectionError: the stream was cut off.
        """
        if not self.ended:
            raise ScenariumConnectionError("the connection broke before the stream ended")


@dataclass(frozen=True)
class Scenario:
    """A scenario as ``GET /scenarios/{name}`` describes it."""

    name: str
    state: str
    version: int | None
    streams: bool
    """Whether ``stream`` answers in parts."""
    pure: bool
    """Whether the same request always has the same answer and changes nothing, so that it may be sent again."""
    request_schema: dict[str, Any]
    """JSON schema of a request."""
    response_schema: dict[str, Any]
    """JSON schema of an answer."""
    sample: dict[str, Any]
    """A request that works."""
    answer: dict[str, Any] | None
    """Its answer."""
    about: dict[str, Any]
    """The whole description: metrics, baseline, model card, origin of the data, limits."""


def scenario(about: dict[str, Any]) -> Scenario:
    """The description of a scenario; of one that is not trained, what there is."""
    schema = about.get("schema", {})
    return Scenario(
        name=about["name"],
        state=about["state"],
        version=about.get("version"),
        streams=about.get("streams", False),
        pure=about.get("pure", False),
        request_schema=schema.get("request", {}),
        response_schema=schema.get("response", {}),
        sample=about.get("sample", {}),
        answer=about.get("answer"),
        about=about,
    )


@dataclass(frozen=True)
class JobStatus:
    """A job at one moment."""

    id: str
    scenario: str
    state: str
    """``queued``, ``running``, ``done``, ``failed`` or ``cancelled``."""
    mode: str
    """``one``, ``batch`` or ``stream``."""
    done: int | None
    """Elements or parts that are there; None: it is a single prediction."""
    total: int | None
    error: ScenariumAPIError | None
    """Why it failed."""
    about: dict[str, Any]
    """The whole description: times, version."""

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.state in ("done", "failed", "cancelled")


def job_status(about: dict[str, Any]) -> JobStatus:
    """The description of a job."""
    progress = about.get("progress") or {}
    fault = about.get("error")
    return JobStatus(
        about["id"], about["scenario"], about["state"], about["mode"], progress.get("done"), progress.get("total"), of_problem(fault) if fault else None, about
    )
