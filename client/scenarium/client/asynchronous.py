"""The asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload
from urllib.parse import quote

import httpx

from scenarium.client import answers
from scenarium.client.answers import Answer, Item, JobStatus, Scenario
from scenarium.client.batches import ITEMS, Chunks
from scenarium.client.blocking import LIMITS
from scenarium.client.errors import ScenariumConnectionError
from scenarium.client.flows import CONNECT_S, Attempt, Flow, Flows, Options, Told
from scenarium.client.live import Live, opened
from scenarium.client.payloads import Payload, Value, payload, to_json
from scenarium.client.retries import Retry

M = TypeVar("M")
R = TypeVar("R")


class AsyncClient:
    """A gateway, for asyncio. Arguments, calls and errors are those of ``Client``; close it, or use it by ``async with``."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        language: str | None = None,
        deadline: float | None = 60.0,
        retry: Retry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._flows = Flows(url, api_key=api_key, language=language, deadline=deadline, retry=retry)
        self._http = httpx.AsyncClient(transport=transport, limits=LIMITS)

    @property
    def url(self) -> str:
        """Where the gateway is."""
        return self._flows.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _run(self, flow: Flow[R]) -> R:
        told: Told = None
        while True:
            try:
                step = flow.send(told)
            except StopIteration as done:
                result: R = done.value
                return result
            told = None
            if isinstance(step, Attempt):
                told = await self._attempt(step)
            else:
                await asyncio.sleep(step.seconds)

    async def _attempt(self, step: Attempt) -> Told:
        try:
            response = await self._http.send(step.request, stream=step.stream)
            if response.status_code >= 400:
                await response.aread()
            return response
        except httpx.TransportError as fault:
            return fault

    # ── predictions ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def scenarios(self, **options: Unpack[Options]) -> list[Scenario]:
        """All scenarios, without schemas and samples."""
        return await self._run(self._flows._scenarios(options))

    async def scenario(self, name: str, **options: Unpack[Options]) -> Scenario:
        """One scenario with its schemas, sample and answer."""
        return await self._run(self._flows._scenario(name, options))

    @overload
    async def predict(self, name: str, value: Value, *, into: None = None, **options: Unpack[Options]) -> Answer: ...
    @overload
    async def predict(self, name: str, value: Value, *, into: type[M], **options: Unpack[Options]) -> M: ...
    async def predict(self, name: str, value: Value, *, into: Any = None, **options: Unpack[Options]) -> Any:
        """One answer. ``into``: a pydantic model that it is to be."""
        return await self._run(self._flows._predict(name, value, into, options))

    @overload
    def predict_batch(
        self, name: str, values: Iterable[Value] | AsyncIterable[Value], *, into: None = None, chunk: int = ITEMS, **options: Unpack[Options]
    ) -> AsyncIterator[Item[Answer]]: ...
    @overload
    def predict_batch(
        self, name: str, values: Iterable[Value] | AsyncIterable[Value], *, into: type[M], chunk: int = ITEMS, **options: Unpack[Options]
    ) -> AsyncIterator[Item[M]]: ...
    async def predict_batch(
        self, name: str, values: Iterable[Value] | AsyncIterable[Value], *, into: Any = None, chunk: int = ITEMS, **options: Unpack[Options]
    ) -> AsyncIterator[Item[Any]]:
        """Answers in order, an element that fails with its own error. Elements are taken as they are needed, ``chunk`` at a time, so their number has
        no bound; the deadline is that of each chunk."""
        held = Chunks(chunk)
        async for value in values if isinstance(values, AsyncIterable) else _each(values):
            if held.add(value):
                for item in await self._chunk(name, held, into, options):
                    yield item
        for item in await self._chunk(name, held, into, options):
            yield item

    async def _chunk(self, name: str, held: Chunks, into: Any, options: Options) -> list[Item[Any]]:
        first, lines = held.take()
        return list(answers.items(await self._run(self._flows._batch(name, lines, options)), first, into)) if lines else []

    @overload
    def stream(self, name: str, value: Value, *, into: None = None, **options: Unpack[Options]) -> AsyncIterator[Answer]: ...
    @overload
    def stream(self, name: str, value: Value, *, into: type[M], **options: Unpack[Options]) -> AsyncIterator[M]: ...
    async def stream(self, name: str, value: Value, *, into: Any = None, **options: Unpack[Options]) -> AsyncIterator[Any]:
        """The parts of one answer as they come. Closing the iterator (``contextlib.aclosing``) ends the work; a stream that is cut off is an error."""
        response = await self._run(self._flows._stream(name, value, options))
        try:
            parts = answers.Parts(response, into)
            async for data in response.aiter_raw():
                for part in parts.feed(data):
                    yield part
            parts.close()
        except httpx.TransportError as fault:
            raise ScenariumConnectionError(f"{self.url}: {fault or type(fault).__name__}") from fault
        finally:
            await response.aclose()

    # ── live ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    @overload
    def live(self, name: str, *, max_lag: int | None = None, into: None = None, **options: Unpack[Options]) -> AbstractAsyncContextManager[Live[Answer]]: ...
    @overload
    def live(self, name: str, *, max_lag: int | None = None, into: type[M], **options: Unpack[Options]) -> AbstractAsyncContextManager[Live[M]]: ...
    @asynccontextmanager
    async def live(self, name: str, *, max_lag: int | None = None, into: Any = None, **options: Unpack[Options]) -> AsyncIterator[Live[Any]]:
        """A WebSocket for a camera or a sensor, for ``async with``. ``max_lag``: how many frames may wait at the gateway before the oldest is dropped
        (default: 1). ``deadline`` is that of each frame, counted from when it came; default: the scenario's own."""
        headers, limit = self._flows.headers(options), options.get("deadline")
        if limit is not None:
            headers["x-scenarium-deadline-ms"] = str(round(limit * 1000))
        found = await opened(self.url, f"/scenarios/{quote(name, safe='')}/live", headers, max_lag, into, CONNECT_S)
        try:
            yield found
        finally:
            await found.close()

    # ── jobs ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def submit(self, name: str, value: Value, *, stream: bool = False, idempotency_key: str | None = None, **options: Unpack[Options]) -> AsyncJob:
        """Ask for a prediction that may take long. ``stream``: its parts are wanted. With the same ``idempotency_key`` it is the same job."""
        return AsyncJob(self, await self._run(self._flows._submit(name, payload(value), "stream" if stream else "one", idempotency_key, options)))

    async def submit_batch(self, name: str, values: Iterable[Value], *, idempotency_key: str | None = None, **options: Unpack[Options]) -> AsyncJob:
        """Ask for many predictions; they go in one body."""
        body = Payload(b"\n".join(map(to_json, values)), "application/x-ndjson")
        return AsyncJob(self, await self._run(self._flows._submit(name, body, "batch", idempotency_key, options)))

    async def job(self, ident: str, **options: Unpack[Options]) -> AsyncJob:
        """A job that was made before."""
        return AsyncJob(self, await self._run(self._flows._job("GET", ident, options)))


async def _each(values: Iterable[Value]) -> AsyncIterator[Value]:
    for value in values:
        yield value


class AsyncJob:
    """A job of one client."""

    def __init__(self, client: AsyncClient, status: JobStatus) -> None:
        self._client = client
        self.id = status.id
        self.last = status
        """What was last heard of it."""

    async def status(self, **options: Unpack[Options]) -> JobStatus:
        """How it is now."""
        self.last = await self._client._run(self._client._flows._job("GET", self.id, options))
        return self.last

    async def wait(self, timeout: float | None = None, told: Callable[[JobStatus], None] | None = None) -> JobStatus:
        """Wait until it has ended. ``told`` hears of its progress.

        Raises:
            DeadlineExceeded: after ``timeout`` seconds. The job goes on.
        """
        self.last = await self._client._run(self._client._flows._wait(self.id, timeout, told))
        return self.last

    async def result(self, *, into: Any = None, **options: Unpack[Options]) -> Any:
        """Its answer; of a batch the list of its ``Item``, of a stream the list of its parts.

        Raises:
            ScenariumAPIError: why it failed; SCN-4122 where it has not ended, SCN-4123 where it was cancelled or has expired.
        """
        return await self._client._run(self._client._flows._result(self.id, into, options))

    async def cancel(self, **options: Unpack[Options]) -> JobStatus:
        """End it."""
        self.last = await self._client._run(self._client._flows._job("DELETE", self.id, options))
        return self.last
