"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

import httpx

from scenarium.client import answers
from scenarium.client.answers import Answer, Item, JobStatus, Scenario
from scenarium.client.batches import ITEMS, Chunks
from scenarium.client.errors import ScenariumConnectionError
from scenarium.client.flows import Attempt, Flow, Flows, Options, Told
from scenarium.client.payloads import Payload, Value, payload, to_json
from scenarium.client.retries import Retry

M = TypeVar("M")
R = TypeVar("R")


class Client:
    """A gateway, for programs that wait. It may be shared by threads; close it, or use it by ``with``.

    Args:
        url: Where the gateway is; default: ``SCENARIUM_URL``, else ``http://localhost:8080``.
        api_key: Default: ``SCENARIUM_API_KEY``, else none.
        language: Of errors, ``en`` or ``zh``; default: ``SCENARIUM_LANG``, else the gateway's choice.
        deadline: Seconds that a call may take with all its attempts; None: as long as the gateway allows.
        retry: How often and when a request is sent again.
        transport: httpx's; default: connections of its own.

    Every call takes ``Options`` by keyword, and raises ``ScenariumAPIError``, ``ScenariumConnectionError`` or ``DeadlineExceeded``.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        language: str | None = None,
        deadline: float | None = 60.0,
        retry: Retry | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._flows = Flows(url, api_key=api_key, language=language, deadline=deadline, retry=retry)
        self._http = httpx.Client(transport=transport, limits=LIMITS)

    @property
    def url(self) -> str:
        """Where the gateway is."""
        return self._flows.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _run(self, flow: Flow[R]) -> R:
        told: Told = None
        try:
            while True:
                step = flow.send(told)
                told = None
                if isinstance(step, Attempt):
                    told = self._attempt(step)
                else:
                    time.sleep(step.seconds)
        except StopIteration as done:
            result: R = done.value
            return result

    def _attempt(self, step: Attempt) -> Told:
        try:
            response = self._http.send(step.request, stream=step.stream)
            if response.status_code >= 400:
                response.read()
            return response
        except httpx.TransportError as fault:
            return fault

    # ── predictions ───────────────────────────────────────────────────────────────────────────────────────────────────

    def scenarios(self, **options: Unpack[Options]) -> list[Scenario]:
        """All scenarios, without schemas and samples."""
        return self._run(self._flows._scenarios(options))

    def scenario(self, name: str, **options: Unpack[Options]) -> Scenario:
        """One scenario with its schemas, sample and answer."""
        return self._run(self._flows._scenario(name, options))

    @overload
    def predict(self, name: str, value: Value, *, into: None = None, **options: Unpack[Options]) -> Answer: ...
    @overload
    def predict(self, name: str, value: Value, *, into: type[M], **options: Unpack[Options]) -> M: ...
    def predict(self, name: str, value: Value, *, into: Any = None, **options: Unpack[Options]) -> Any:
        """One answer. ``into``: a pydantic model that it is to be."""
        return self._run(self._flows._predict(name, value, into, options))

    @overload
    def predict_batch(
        self, name: str, values: Iterable[Value], *, into: None = None, chunk: int = ITEMS, **options: Unpack[Options]
    ) -> Iterator[Item[Answer]]: ...
    @overload
    def predict_batch(self, name: str, values: Iterable[Value], *, into: type[M], chunk: int = ITEMS, **options: Unpack[Options]) -> Iterator[Item[M]]: ...
    def predict_batch(self, name: str, values: Iterable[Value], *, into: Any = None, chunk: int = ITEMS, **options: Unpack[Options]) -> Iterator[Item[Any]]:
        """Answers in order, an element that fails with its own error. Elements are taken as they are needed, ``chunk`` at a time, so their number has
        no bound; the deadline is that of each chunk."""
        held = Chunks(chunk)
        for value in values:
            if held.add(value):
                yield from self._chunk(name, held, into, options)
        yield from self._chunk(name, held, into, options)

    def _chunk(self, name: str, held: Chunks, into: Any, options: Options) -> Iterator[Item[Any]]:
        first, lines = held.take()
        if lines:
            yield from answers.items(self._run(self._flows._batch(name, lines, options)), first, into)

    @overload
    def stream(self, name: str, value: Value, *, into: None = None, **options: Unpack[Options]) -> Iterator[Answer]: ...
    @overload
    def stream(self, name: str, value: Value, *, into: type[M], **options: Unpack[Options]) -> Iterator[M]: ...
    def stream(self, name: str, value: Value, *, into: Any = None, **options: Unpack[Options]) -> Iterator[Any]:
        """The parts of one answer as they come. Closing the iterator (or leaving its loop) ends the work; a stream that is cut off is an error."""
        response = self._run(self._flows._stream(name, value, options))
        try:
            parts = answers.Parts(response, into)
            for data in response.iter_raw():
                yield from parts.feed(data)
            parts.close()
        except httpx.TransportError as fault:
            raise ScenariumConnectionError(f"{self.url}: {fault or type(fault).__name__}") from fault
        finally:
            response.close()

    # ── jobs ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, name: str, value: Value, *, stream: bool = False, idempotency_key: str | None = None, **options: Unpack[Options]) -> Job:
        """Ask for a prediction that may take long. ``stream``: its parts are wanted. With the same ``idempotency_key`` it is the same job."""
        return Job(self, self._run(self._flows._submit(name, payload(value), "stream" if stream else "one", idempotency_key, options)))

    def submit_batch(self, name: str, values: Iterable[Value], *, idempotency_key: str | None = None, **options: Unpack[Options]) -> Job:
        """Ask for many predictions; they go in one body."""
        body = Payload(b"\n".join(map(to_json, values)), "application/x-ndjson")
        return Job(self, self._run(self._flows._submit(name, body, "batch", idempotency_key, options)))

    def job(self, ident: str, **options: Unpack[Options]) -> Job:
        """A job that was made before."""
        return Job(self, self._run(self._flows._job("GET", ident, options)))


LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=4.0)
"""A connection is given up before the gateway closes it (``gateway.keep_alive_s``), so that no request meets a closed one."""


class Job:
    """A job of one client."""

    def __init__(self, client: Client, status: JobStatus) -> None:
        self._client = client
        self.id = status.id
        self.last = status
        """What was last heard of it."""

    def status(self, **options: Unpack[Options]) -> JobStatus:
        """How it is now."""
        self.last = self._client._run(self._client._flows._job("GET", self.id, options))
        return self.last

    def wait(self, timeout: float | None = None, told: Callable[[JobStatus], None] | None = None) -> JobStatus:
        """Wait until it has ended. ``told`` hears of its progress.

        Raises:
            DeadlineExceeded: after ``timeout`` seconds. The job goes on.
        """
        self.last = self._client._run(self._client._flows._wait(self.id, timeout, told))
        return self.last

    def result(self, *, into: Any = None, **options: Unpack[Options]) -> Any:
        """Its answer; of a batch the list of its ``Item``, of a stream the list of its parts.

        Raises:
            ScenariumAPIError: why it failed; SCN-4122 where it has not ended, SCN-4123 where it was cancelled or has expired.
        """
        return self._client._run(self._client._flows._result(self.id, into, options))

    def cancel(self, **options: Unpack[Options]) -> JobStatus:
        """End it."""
        self.last = self._client._run(self._client._flows._job("DELETE", self.id, options))
        return self.last
