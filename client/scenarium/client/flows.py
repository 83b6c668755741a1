"""What both clients do, without doing it: each call is a generator that yields requests and pauses, is told how they went, and returns its result.

So the synchronous and the asynchronous client share every decision and differ only in who waits.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx

from scenarium.client import answers
from scenarium.client.answers import JobStatus, Scenario
from scenarium.client.errors import DeadlineExceeded, ScenariumConnectionError, of_response
from scenarium.client.payloads import Payload, Value, payload
from scenarium.client.retries import Retry, never_run, worth

URL = "http://localhost:8080"
CONNECT_S = 5.0
SLACK_S = 1.0
"""How much longer than the deadline the gateway's own 504 is waited for."""


class Options(TypedDict, total=False):
    """What every call takes beside its arguments."""

    deadline: float | None
    """Seconds for the call with all its attempts; None: as long as the gateway allows. Default: the client's."""
    routing_key: str
    """Requests with one key go to one worker: the session of a chat."""
    priority: Literal["high", "normal", "low"]
    language: str
    """Of errors: ``en`` or ``zh``. Default: the client's."""
    request_id: str
    """What the gateway's log calls the request."""
    headers: Mapping[str, str]
    """More headers (``traceparent``)."""


class Attempt(NamedTuple):
    """A request to be sent once; the flow is told the response, or httpx's error."""

    request: httpx.Request
    stream: bool


class Pause(NamedTuple):
    """To be waited for."""

    seconds: float


Told: TypeAlias = "httpx.Response | httpx.TransportError | None"
R = TypeVar("R")
Flow: TypeAlias = Generator[Attempt | Pause, Told, R]


class Flows:
    """The calls of one client."""

    def __init__(
        self, url: str | None = None, *, api_key: str | None = None, language: str | None = None, deadline: float | None = 60.0, retry: Retry | None = None
    ) -> None:
        self.url = (url or os.environ.get("SCENARIUM_URL") or URL).rstrip("/")
        self.api_key = api_key or os.environ.get("SCENARIUM_API_KEY")
        self.language = language or os.environ.get("SCENARIUM_LANG")
        self.deadline = deadline
        self.retry = retry or Retry()
        self._pure: dict[str, bool] = {}

    def headers(self, options: Options) -> dict[str, str]:
        """The headers that follow from client and options, the deadline's excepted."""
        found = {"user-agent": "scenarium-client", **options.get("headers", {})}
        if self.api_key:
            found["authorization"] = f"Bearer {self.api_key}"
        named = {"x-scenarium-key": "routing_key", "x-scenarium-priority": "priority", "x-request-id": "request_id"}
        found.update({header: options[option] for header, option in named.items() if option in options})  # type: ignore[literal-required]
        language = options.get("language", self.language)
        return {**found, "accept-language": language[:2]} if language else found

    # ── one request with its attempts ─────────────────────────────────────────────────────────────────────────────────

    def call(
        self,
        method: str,
        path: str,
        body: Payload | None = None,
        options: Options | None = None,
        *,
        repeat: bool | str = True,
        stream: bool = False,
        deadline_header: bool = True,
    ) -> Flow[httpx.Response]:
        """Send until it succeeds, it cannot, or there is no time left. ``repeat``: whether it may be run twice; a name: where this scenario is pure.

        Raises:
            ScenariumAPIError, ScenariumConnectionError, DeadlineExceeded.
        """
        options = options or {}
        limit = options.get("deadline", self.deadline)
        until = time.monotonic() + (math.inf if limit is None else limit)
        headers = self.headers(options)
        for attempt in range(self.retry.attempts):
            left = until - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(f"{method} {path}: no answer within {limit} s")
            told = yield Attempt(self._request(method, path, body, headers, left if deadline_header else math.inf, left), stream)
            assert told is not None
            if isinstance(told, httpx.Response) and told.status_code < 400:
                return told
            error = of_response(told) if isinstance(told, httpx.Response) else None
            after = error.retry_after if error else None
            pause = self.retry.pause(attempt, after)
            last = attempt + 1 == self.retry.attempts or (after or 0) > self.retry.patience or time.monotonic() + pause >= until
            if last or not worth(told) or not (never_run(told) or (yield from self._repeatable(repeat))):
                if error:
                    raise error
                assert isinstance(told, httpx.TransportError)
                if isinstance(told, httpx.TimeoutException) and not isinstance(told, httpx.ConnectTimeout):
                    raise DeadlineExceeded(f"{method} {path}: no answer within {limit} s") from told
                raise ScenariumConnectionError(f"{self.url}: {told or type(told).__name__}") from told
            yield Pause(pause)
        raise AssertionError("unreachable")

    def _request(self, method: str, path: str, body: Payload | None, headers: dict[str, str], told: float, left: float) -> httpx.Request:
        more = {} if told == math.inf else {"x-scenarium-deadline-ms": str(math.ceil(told * 1000))}
        if body:
            more["content-type"] = body.content_type
        wait = None if left == math.inf else left + SLACK_S
        timeout = httpx.Timeout(wait, connect=min(CONNECT_S, left))
        return httpx.Request(
            method, self.url + path, headers={**headers, **more}, content=body.content if body else None, extensions={"timeout": timeout.as_dict()}
        )

    def _repeatable(self, repeat: bool | str) -> Flow[bool]:
        """Whether a request may be run twice; of a scenario that cannot be asked, no."""
        if isinstance(repeat, bool):
            return repeat
        if repeat not in self._pure:
            told = yield Attempt(self._request("GET", f"/scenarios/{quote(repeat, safe='')}", None, self.headers({}), math.inf, CONNECT_S), False)
            if not isinstance(told, httpx.Response) or told.status_code >= 400 or "pure" not in told.json():
                return False
            self._pure[repeat] = bool(told.json()["pure"])
        return self._pure[repeat]

    # ── the calls ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _scenarios(self, options: Options) -> Flow[list[Scenario]]:
        response = yield from self.call("GET", "/scenarios", options=options, deadline_header=False)
        return [answers.scenario(each) for each in response.json()["scenarios"]]

    def _scenario(self, name: str, options: Options) -> Flow[Scenario]:
        response = yield from self.call("GET", f"/scenarios/{quote(name, safe='')}", options=options, deadline_header=False)
        return answers.scenario(response.json())

    def _predict(self, name: str, value: Value, into: Any, options: Options) -> Flow[Any]:
        response = yield from self.call("POST", f"/scenarios/{quote(name, safe='')}/predict", payload(value), options, repeat=name)
        return answers.answer(response.content, response, into)

    def _batch(self, name: str, lines: list[bytes], options: Options) -> Flow[httpx.Response]:
        body = Payload(b"\n".join(lines), "application/x-ndjson")
        return (yield from self.call("POST", f"/scenarios/{quote(name, safe='')}/predict/batch", body, options, repeat=name))

    def _stream(self, name: str, value: Value, options: Options) -> Flow[httpx.Response]:
        return (yield from self.call("POST", f"/scenarios/{quote(name, safe='')}/stream", payload(value), options, repeat=name, stream=True))

    def _submit(self, name: str, body: Payload, mode: str, key: str | None, options: Options) -> Flow[JobStatus]:
        # The key makes a repetition the same job, so that it is always safe.
        options = {**options, "headers": {**options.get("headers", {}), "idempotency-key": key or uuid4().hex}}
        query = "" if mode == "one" else f"?{mode}=1"
        response = yield from self.call("POST", f"/scenarios/{quote(name, safe='')}/jobs{query}", body, options, deadline_header=False)
        return answers.job_status(response.json())

    def _job(self, method: str, ident: str, options: Options) -> Flow[JobStatus]:
        response = yield from self.call(method, f"/jobs/{quote(ident, safe='')}", options=options, deadline_header=False)
        return answers.job_status(response.json())

    def _wait(self, ident: str, timeout: float | None, told: Callable[[JobStatus], None] | None) -> Flow[JobStatus]:
        """Ask, ever less often, until the job has ended."""
        until, pause = time.monotonic() + (math.inf if timeout is None else timeout), 0.05
        while True:
            status = yield from self._job("GET", ident, {})
            if told:
                told(status)
            if status.ended:
                return status
            if time.monotonic() + pause > until:
                raise DeadlineExceeded(f"job {ident} has not ended within {timeout} s")
            yield Pause(pause)
            pause = min(2.0, pause * 1.5)

    def _result(self, ident: str, into: Any, options: Options) -> Flow[Any]:
        response = yield from self.call("GET", f"/jobs/{quote(ident, safe='')}/result", options=options, deadline_header=False)
        if response.headers["content-type"].startswith("application/x-ndjson"):
            lines = answers.items(response, 0, into)
            return list(lines) if "x-scenarium-items" in response.headers else [line.value() for line in lines]
        return answers.answer(response.content, response, into)
