"""``POST /scenarios/{name}/jobs`` and ``/jobs/…``: asking for a job, looking after it, and its result."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

from fastapi import FastAPI, Request, Response

from scenarium.core.errors import ScenariumError, Words
from scenarium.gateway import problems
from scenarium.gateway.elements import Elements
from scenarium.gateway.job_file import STATES, Job, Mode, New
from scenarium.gateway.job_run import elements
from scenarium.gateway.openapi_cold import LARGEST_PAGE
from scenarium.gateway.predict import JSON, Call, Endpoint, body_key, read_body, send_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from scenarium.gateway.admission import Caller
    from scenarium.gateway.app import Gateway
    from scenarium.gateway.services import Service

    Reply = Callable[..., Response]

ONCE_LENGTH = 255
PAGE = 50


class Submit:
    """``POST /scenarios/{name}/jobs``: the body of ``/predict``; with ``?batch=1`` that of ``/predict/batch``, with ``?stream=1`` that of ``/stream``."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _Submission(self.gateway, scope)(scope, receive, send)


class _Submission(Endpoint):
    """One such request, whose query and own header its base class does not know."""

    def __init__(self, gateway: Gateway, scope: Scope) -> None:
        super().__init__(gateway)
        self.query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        self.once = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"idempotency-key"), None)

    async def answer(self, service: Service, call: Call, receive: Receive, send: Send) -> None:
        if service.fault:
            raise service.fault
        config, mode = self.gateway.config, self._mode()
        if mode == "stream" and service.version and not service.version.manifest.streams:
            raise ScenariumError("SCN-4005", name=service.name)
        if self.once is not None and not 0 < len(self.once) <= ONCE_LENGTH:
            english, chinese = f"1 to {ONCE_LENGTH} characters", f" 1 至 {ONCE_LENGTH} 个字符"
            raise ScenariumError("SCN-4018", header="Idempotency-Key", value=self.once[:40], wanted_en=english, wanted_zh=chinese)
        limit_ms = call.deadline(config.job_deadline_s * 1000)
        body = await read_body(receive, config.max_job_bytes if mode == "batch" else service.config.max_body_bytes, call.length, service.name)
        total = sum([1 async for _ in elements(Elements(service.config.max_body_bytes, service.name), body)]) if mode == "batch" else None
        routing = call.key or (mode != "batch" and service.route_key and body_key(body, service.route_key)) or ""
        digest = hashlib.sha256(b"%s\0%s\0%s" % (mode.encode(), call.content_type.encode(), body)).digest()
        new = New(service.name, call.caller.id, mode, call.content_type, call.language, routing, call.trace, limit_ms, total, self.once, digest, body)
        job = await self.gateway.jobs.add(new)
        content = json.dumps(describe(self.gateway, job, call.language), ensure_ascii=False).encode()
        await send_body(send, 202, [JSON, (b"location", f"/jobs/{job.id}".encode()), (b"x-request-id", call.rid_header)], content)

    def _mode(self) -> Mode:
        """What is asked for.

        Raises:
            ScenariumError: SCN-4129.
        """
        modes: tuple[Mode, ...] = ("batch", "stream")
        found: list[Mode] = [mode for mode in modes if _choice(self.query, mode, ("0", "1")) == "1"]
        if len(found) > 1:
            raise ScenariumError("SCN-4129", field="stream", value="1", wanted_en="possible beside batch=1", wanted_zh="可与 batch=1 同时使用的值")
        return found[0] if found else "one"


def describe(gateway: Gateway, job: Job, lang: str) -> dict[str, Any]:
    """A job as JSON."""
    run = gateway.jobs.run_of(job) if job.state == "running" else None
    waits = run is not None and not run.sent
    found: dict[str, Any] = {
        "id": job.id,
        "scenario": job.scenario,
        "mode": job.mode,
        "state": "queued" if waits else job.state,
        "created": _time(job.created),
        "started": None if waits else _time(job.started),
        "ended": _time(job.ended),
        "expires": _time(job.ended and job.ended + gateway.config.jobs_keep_s),
        "version": job.version,
        "url": f"/jobs/{job.id}",
        "result": f"/jobs/{job.id}/result",
    }
    if job.mode != "one":
        done, errors = (run.done, run.errors) if run else (job.done, job.errors)
        found["progress"] = {"done": done, "total": job.total, "errors": errors}
    if job.fault:
        found["error"] = json.loads(job.fault)[lang]
    return found


def _time(value: float | None) -> str | None:
    return None if value is None else datetime.fromtimestamp(value, UTC).isoformat(timespec="milliseconds")


def add_routes(app: FastAPI, gateway: Gateway, reply: Reply) -> None:
    """The routes; ``reply(request, value, status)`` makes a JSON answer."""
    jobs = gateway.jobs

    @app.get("/jobs")
    async def listed(request: Request) -> Response:
        scenario, state, after, limit = _list_query(request)
        owner = _owner(request)
        below = (await jobs.find(after, owner)).number if after else None
        found = await jobs.page(owner, scenario, state, below, limit + 1)
        more = {"scenario": scenario, "state": state, "limit": limit, "after": found[limit - 1].id} if len(found) > limit else None
        next_page = more and f"/jobs?{urlencode({key: value for key, value in more.items() if value is not None})}"
        lang = Call(request.scope["headers"]).language
        return reply(request, {"jobs": [describe(gateway, job, lang) for job in found[:limit]], "next": next_page})

    @app.get("/jobs/{ident}")
    async def shown(request: Request, ident: str) -> Response:
        job = await jobs.find(ident, _owner(request))
        return reply(request, describe(gateway, job, Call(request.scope["headers"]).language))

    @app.get("/jobs/{ident}/result")
    async def result(request: Request, ident: str) -> Response:
        job = await jobs.find(ident, _owner(request))
        if job.state in ("queued", "running"):
            raise ScenariumError("SCN-4122", ident=ident, state=job.state)
        if job.state == "cancelled":
            raise ScenariumError("SCN-4123", ident=ident, reason=Words("it was cancelled", "已被取消"))
        content = await jobs.result(job)
        if content is None:
            raise ScenariumError("SCN-4123", ident=ident, reason=Words("it has expired", "已过期"))
        call = Call(request.scope["headers"])
        headers = {"x-request-id": call.rid_header.decode("latin-1"), **({"x-scenarium-version": str(job.version)} if job.version else {})}
        if job.fault:
            problem = json.loads(job.fault)[call.language]
            return Response(json.dumps(problem, ensure_ascii=False).encode(), problem["status"], headers, problems.PROBLEM.decode())
        if job.mode == "batch":
            headers |= {"x-scenarium-items": str(job.done), "x-scenarium-errors": str(job.errors)}
        return Response(content, 200, headers, job.media)

    @app.delete("/jobs/{ident}")
    async def cancelled(request: Request, ident: str) -> Response:
        job = await jobs.cancel(await jobs.find(ident, _owner(request)))
        return reply(request, describe(gateway, job, Call(request.scope["headers"]).language))


def _choice(query: dict[str, list[str]], field: str, values: tuple[str, ...]) -> str | None:
    value = query.get(field, [None])[-1]
    if value is not None and value not in values:
        raise ScenariumError("SCN-4129", field=field, value=value[:40], wanted_en=" or ".join(values), wanted_zh=f" {' 或 '.join(values)}")
    return value


def _list_query(request: Request) -> tuple[str | None, str | None, str | None, int]:
    """``scenario``, ``state``, ``after`` and ``limit`` of a list.

    Raises:
        ScenariumError: SCN-4129.
    """
    query = parse_qs(request.scope["query_string"].decode("latin-1"))
    scenario, after, limit = (query.get(field, [None])[-1] for field in ("scenario", "after", "limit"))
    if limit is not None and not (limit.isdecimal() and limit.isascii() and 0 < int(limit[:9]) <= LARGEST_PAGE):
        english, chinese = f"a number from 1 to {LARGEST_PAGE}", f" 1 至 {LARGEST_PAGE} 的整数"
        raise ScenariumError("SCN-4129", field="limit", value=limit[:40], wanted_en=english, wanted_zh=chinese)
    return scenario, _choice(query, "state", STATES), after, int(limit or PAGE)


def _owner(request: Request) -> str | None:
    """Whose jobs this caller sees; None: everybody's."""
    caller: Caller = request.scope["caller"]
    return None if caller.key and caller.key.admin else caller.id
