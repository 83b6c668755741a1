"""A scenario whose answers come from another server of the OpenAI API (vLLM, or any): ``serve.upstream``. The gateway passes requests on and answers back, as
they are but for the name of the model; keys, limits, deadline, audit log and metrics are ours. No worker takes part, and no version is needed.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import httpx

from scenarium.core.errors import ScenariumError
from scenarium.gateway.openai import asking
from scenarium.gateway.predict import Call, Disconnected, send_body

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Receive, Send

    from scenarium.core.config import ServeConfig
    from scenarium.gateway.openai.models import Form
    from scenarium.gateway.services import Service

PATHS: dict[Form, str] = {"chat": "/chat/completions", "completions": "/completions", "embeddings": "/embeddings"}
CONNECT_S = 5.0
LARGEST = 64 << 20
"""Bytes of a whole answer."""
LONGEST = 2000
"""Characters of an upstream's own words that are passed on."""


class Refused(ScenariumError):
    """The upstream's refusal, with the header that goes on to the client."""

    def __init__(self, code: str, retry_after: str, **values: Any) -> None:
        super().__init__(code, **values)
        self.headers = [(b"retry-after", retry_after.encode("latin-1"))] if retry_after else []


class Upstreams:
    """The connections to all upstreams of one gateway."""

    def __init__(self) -> None:
        self.client: httpx.AsyncClient | None = None
        self.open: dict[str, int] = {}
        """Requests that are open, by scenario."""

    async def close(self) -> None:
        """End all connections."""
        if self.client:
            await self.client.aclose()

    async def pass_on(self, form: Form, service: Service, fields: dict[str, Any], call: Call, receive: Receive, send: Send) -> None:
        """Answer one request with what the upstream of its scenario answers. When the client leaves, the upstream's connection is closed, which
        ends its work.

        Raises:
            ScenariumError: SCN-4006 (too many are open), SCN-4007 (not answered in time), SCN-4301 (a text that cannot be sent), SCN-4304 (cannot
                be reached, or broke off), SCN-4305 to SCN-4307 (it refused). Disconnected: the client left.
        """
        began, name, config = time.monotonic(), service.name, service.config
        limit_ms = call.deadline(config.deadline_ms)
        if self.open.get(name, 0) >= config.queue_size:
            service.stats.failed("busy")
            raise ScenariumError("SCN-4006", name=name, waiting=config.queue_size)
        self.open[name] = self.open.get(name, 0) + 1
        work = asyncio.create_task(self._answer(form, name, config, fields, call, send))
        left = asyncio.create_task(_leaving(receive))
        try:
            await asyncio.wait({work, left}, timeout=limit_ms / 1000, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                failure = "cancelled" if left.done() else "deadline"
                service.stats.failed(failure)
                if left.done():
                    raise Disconnected
                raise ScenariumError("SCN-4007", name=name, ms=round(limit_ms))
            try:
                work.result()
            except ScenariumError as fault:
                service.stats.shared(fault.status, time.monotonic() - began)
                raise
            service.stats.shared(200, time.monotonic() - began)
        finally:
            self.open[name] -= 1
            for task in (work, left):
                task.cancel()
            await asyncio.gather(work, left, return_exceptions=True)

    async def _answer(self, form: Form, name: str, config: ServeConfig, fields: dict[str, Any], call: Call, send: Send) -> None:
        assert config.upstream
        body = asking.body({**fields, "model": config.upstream_model or name}, form)
        if self.client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            # The deadline bounds the whole; a connection that cannot be made should be told sooner.
            self.client = httpx.AsyncClient(timeout=httpx.Timeout(None, connect=CONNECT_S), limits=limits)
        headers = {"content-type": "application/json", "x-request-id": call.rid_header.decode("latin-1")}
        if call.trace:
            headers["traceparent"] = call.trace
        if config.upstream_key_env:
            headers["authorization"] = f"Bearer {os.environ.get(config.upstream_key_env, '')}"
        try:
            async with self.client.stream("POST", config.upstream.rstrip("/") + PATHS[form], content=body, headers=headers) as answer:
                if answer.status_code != 200:
                    raise refusal(name, answer.status_code, await _whole(name, answer), answer.headers.get("retry-after", ""))
                about = [(b"content-type", answer.headers.get("content-type", "application/json").encode("latin-1")), (b"x-request-id", call.rid_header)]
                if not fields.get("stream"):
                    await send_body(send, 200, about, await _whole(name, answer))
                    return
                await send({"type": "http.response.start", "status": 200, "headers": [*about, (b"cache-control", b"no-cache")]})
                async with aclosing(_parts(answer)) as parts:
                    async for part in parts:
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except (httpx.HTTPError, httpx.InvalidURL) as fault:
            raise unreachable(name, f"{type(fault).__name__}: {fault}") from fault


async def _parts(answer: httpx.Response) -> AsyncGenerator[bytes, None]:
    async for part in answer.aiter_bytes():
        yield part


async def _whole(name: str, answer: httpx.Response) -> bytes:
    found = bytearray()
    async for part in answer.aiter_bytes():
        found += part
        if len(found) > LARGEST:
            raise unreachable(name, f"its answer is larger than {LARGEST} bytes")
    return bytes(found)


async def _leaving(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def unreachable(name: str, reason: str) -> ScenariumError:
    """There is no answer, and a later request may get one."""
    return ScenariumError("SCN-4304", name=name, reason=reason)


def refusal(name: str, status: int, body: bytes, retry_after: str = "") -> ScenariumError:
    """What an upstream's error is to our client: what is wrong with the request stays the client's error, what is wrong with how we are set up, or with
    the upstream, is a 502; only that it is too busy (429, 503) goes on as it is, with its ``Retry-After``."""
    try:
        said = json.loads(body)["error"]
        text = str(said["message"] if isinstance(said, dict) else said)
    except (ValueError, LookupError, TypeError):
        text = body.decode("utf8", "replace")
    code = {429: "SCN-4307", 503: "SCN-4304"}.get(status, "SCN-4306" if status in (400, 413, 422) else "SCN-4305")
    return Refused(code, retry_after if status in (429, 503) else "", name=name, status=status, reason=text[:LONGEST])
