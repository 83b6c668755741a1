"""``/v2/…``: the v2 protocol over HTTP/REST, with Triton's extensions. Plain ASGI, found by its path as the other hot routes are.

Triton's clients name no content type, or a wrong one: whether a body has binary tensors is told by ``Inference-Header-Content-Length`` alone.
"""

from __future__ import annotations

import asyncio
import json
import traceback
import zlib
from typing import TYPE_CHECKING, Any

from scenarium.core.errors import ScenariumError
from scenarium.core.tensors import Malformed, read_header
from scenarium.gateway import logs
from scenarium.gateway.admission import ANONYMOUS
from scenarium.gateway.audit import Entry
from scenarium.gateway.kserve import models, repository
from scenarium.gateway.kserve.inference import Inference, Reply
from scenarium.gateway.kserve.refusals import Refusal, of_error
from scenarium.gateway.predict import JSON, RETRY_AFTER, Answer, Call, Disconnected, Endpoint, read_body, send_body

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from scenarium.gateway.app import Gateway

ROOT = "/v2"
_MODEL = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
ROUTES = (
    *("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats"),
    *(f"{model}{rest}" for model in _MODEL for rest in ("", "/ready", "/config", "/stats", "/infer")),
    *("/v2/repository/index", "/v2/repository/models/{name}/load", "/v2/repository/models/{name}/unload"),
    *("/v2/systemsharedmemory/status", "/v2/systemsharedmemory/unregister"),
    *(f"/v2/systemsharedmemory/region/{{name}}/{verb}" for verb in ("status", "register", "unregister")),
    *("/v2/cudasharedmemory/status", "/v2/cudasharedmemory/unregister"),
)
"""Every path, for the hand-book's test."""
CONTROLS = {"load", "unload", "register", "unregister"}
"""Last parts of the paths that change something for all callers."""
SMALL_BODY = 65_536
"""Largest body of a request that is no inference."""
WORTH_PACKING = 1024
AT_ONCE = 65_536
"""Larger bodies are packed and unpacked in a thread."""
CODINGS = {b"gzip": 31, b"deflate": 15}
"""Content coding to zlib's window bits: gzip's format, or zlib's (RFC 9110, 8.4.1)."""


class V2(Endpoint):
    """All routes below ``/v2``."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway)
        self.inference = Inference()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope["headers"])
        parts = scope["path"][len(ROOT) :].strip("/").split("/")
        infer = parts[0] == "models" and parts[-1] == "infer"
        entry: Entry | None = None
        audit = self.gateway.audit
        try:
            try:
                name, version = _name(parts) if infer else ("", "")
                scenario = models.scenario_of(self.gateway, name) if infer else None
                call.caller = await self._admit(call, scope, parts, scenario)
                if audit and (infer or parts[-1] in CONTROLS):
                    audit.check()
                    entry = Entry(scope["method"], scope["path"], scenario, call.caller)
                    receive, send = entry.receive(receive), entry.send(send)
                if infer:
                    await self._infer(models.find(self.gateway, name, version), call, scope, receive, send)
                else:
                    found = await self._other(scope["method"], parts, scope["path"], call, receive)
                    await send_body(send, 200, [JSON, (b"x-request-id", call.rid_header)], b"" if found is None else json.dumps(found).encode())
            except ScenariumError as error:
                raise of_error(error, call.language) from None
            except Disconnected:
                return
            except Refusal:
                raise
            except Exception as fault:  # a fault of our own, in the protocol's form
                logs.event("error", "gateway_fault", request_id=call.rid_header.decode("latin-1"), traceback="".join(traceback.format_exception(fault)))
                raise of_error(ScenariumError("SCN-4019", reason=f"{type(fault).__name__}: {fault}"), call.language) from fault
        except Refusal as refusal:
            await send_body(send, *refused(refusal, call))
        finally:
            scope["caller"] = call.caller
            if audit and entry:
                audit.put(entry)

    async def _admit(self, call: Call, scope: Scope, parts: list[str], scenario: str | None) -> Any:
        admission = self.gateway.admission
        if scenario is not None:
            if scope["method"] != "POST":
                raise ScenariumError("SCN-4016", method=scope["method"], path=scope["path"])
            return await admission.admit(call, scenario)
        if parts[0] == "health":
            return ANONYMOUS
        if parts[-1] in CONTROLS and scope["method"] == "POST":
            return admission.control(call, dict(scope["headers"]).get(b"origin", b""))
        return admission.check(call, scope["method"], scope["path"])

    # ── inference ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _infer(self, model: models.Model, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        service = model.service
        length, coding, accepted = b"", b"", b""
        for name, value in scope["headers"]:
            if name == b"inference-header-content-length":
                length = value
            elif name == b"content-encoding":
                coding = value
            elif name == b"accept-encoding":
                accepted = value
        limit = service.config.max_body_bytes
        body = await read_body(receive, limit, call.length, service.name)
        if coding and coding != b"identity":
            body = await _apart(len(body), unpack, body, coding, limit, service.name)
        size = header_length(length, len(body))
        reply = await self.inference.run(model, call, body, size, lambda request: self.watcher(service, request, receive))
        status, headers, answer = answered(reply, call)
        if accepted and len(answer) >= WORTH_PACKING and (best := _coding(accepted)):
            answer = await _apart(len(answer), pack, answer, best)
            headers.append((b"content-encoding", best))
        await send_body(send, status, headers, answer)

    # ── everything else ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _other(self, method: str, parts: list[str], path: str, call: Call, receive: Receive) -> Any:
        """What is answered, as JSON; None: nothing but that it is so."""
        gateway = self.gateway
        match method, *parts:
            case "GET", "":
                return models.server()
            case "GET", "health", "live":
                return None
            case "GET", "health", "ready":
                return _must(models.server_ready(gateway), "The gateway is not ready.")
            case "GET", "models", "stats":
                return {"model_stats": [self._figures(model) for model in models.every(gateway)]}
            case "GET", "models", *_:
                return self._model(parts, path)
            case "POST", "repository", "index":
                wanted = await self._object(receive, call)
                return repository.index(gateway, wanted.get("ready") is True)
            case "POST", "repository", "models", name, "load":
                return await repository.load(gateway, name, (await self._object(receive, call)).get("parameters"))
            case "POST", "repository", "models", name, "unload":
                await self._object(receive, call)
                return await repository.unload(gateway, name)
            case _, ("systemsharedmemory" | "cudasharedmemory"), *_:
                return await self._memory(method, parts, path, call, receive)
            case _ if any(path == route for route in ROUTES):
                raise ScenariumError("SCN-4016", method=method, path=path)
        raise ScenariumError("SCN-4015", path=path)

    def _model(self, parts: list[str], path: str) -> Any:
        rest = parts[4:] if parts[2:3] == ["versions"] else parts[2:]
        if rest == ["ready"]:
            try:
                found = models.find(self.gateway, *_name(parts))
            except ScenariumError as fault:  # Triton's word for it
                raise Refusal(400, fault.title()) from None
            return _must(models.is_ready(self.gateway, found), f"Model {found.name!r} is not ready.")
        model = models.find(self.gateway, *_name(parts))
        match rest:
            case []:
                return models.metadata(model)
            case ["config"]:
                return models.config(model)
            case ["stats"]:
                return {"model_stats": [self._figures(model)]}
        raise ScenariumError("SCN-4015", path=path)

    def _figures(self, model: models.Model) -> dict[str, Any]:
        return self.inference.statistics.of(model.name, model.version).shown(model.name, model.version)

    async def _memory(self, method: str, parts: list[str], path: str, call: Call, receive: Receive) -> Any:
        regions = self.inference.regions
        kind, *rest = parts
        if kind == "cudasharedmemory":
            match method, *rest:
                case "GET", "status":
                    return []
                case "POST", "unregister":
                    return None
            raise ScenariumError("SCN-4204", what_en="CUDA shared memory", what_zh="CUDA 共享内存")
        match method, *rest:
            case "GET", "status":
                return regions.status()
            case "GET", "region", name, "status":
                return regions.status(name)
            case "POST", "region", name, "register":
                asked = await self._object(receive, call)
                return regions.register(name, asked.get("key"), asked.get("offset", 0), asked.get("byte_size"))
            case "POST", "unregister":
                return regions.unregister()
            case "POST", "region", name, "unregister":
                return regions.unregister(name)
        raise ScenariumError("SCN-4015", path=path)

    async def _object(self, receive: Receive, call: Call) -> dict[str, Any]:
        """The small JSON object of a request; an empty body is an empty one."""
        body = await read_body(receive, SMALL_BODY, call.length, "v2")
        return read_header(body) if body.strip() else {}


def answered(reply: Reply, call: Call) -> Answer:
    """The answer with an inference's outputs."""
    kind = (b"content-type", b"application/octet-stream") if reply.length else JSON
    headers = [kind, (b"x-request-id", call.rid_header), (b"x-scenarium-version", b"%d" % reply.version)]
    if reply.length:
        headers.append((b"inference-header-content-length", b"%d" % reply.length))
    return 200, headers, reply.body


def refused(refusal: Refusal, call: Call) -> Answer:
    """The answer that says why there are none."""
    headers = [JSON, (b"x-request-id", call.rid_header), *refusal.headers]
    if refusal.version:
        headers.append((b"x-scenarium-version", b"%d" % refusal.version))
    if refusal.status == 503:
        headers.append(RETRY_AFTER)
    if refusal.status in (401, 403, 413, 429):
        headers.append((b"connection", b"close"))  # its body may not have been read
    return refusal.status, headers, refusal.body


def _name(parts: list[str]) -> tuple[str, str]:
    """Model and version of ``models/NAME[/versions/VERSION]…``."""
    if len(parts) < 2:
        raise ScenariumError("SCN-4015", path="/".join(("", "v2", *parts)))
    return parts[1], parts[3] if len(parts) > 3 and parts[2] == "versions" else ""


def _must(condition: bool, otherwise: str) -> None:
    """Readiness in Triton's form: 200 or 400."""
    if not condition:
        raise Refusal(400, otherwise)


def header_length(value: bytes, size: int) -> int:
    """The length of the JSON header in a body of ``size`` bytes; 0 where no header tells one.

    Raises:
        Malformed: it is none.
    """
    if not value:
        return 0
    if not (value.isdigit() and len(value) < 12 and 0 < int(value) <= size):
        shown = value[:40].decode("latin-1")
        raise Malformed(
            f"has an Inference-Header-Content-Length of {shown!r} and a body of {size} bytes",
            f"的 Inference-Header-Content-Length 为 {shown!r}，而请求体有 {size} 个字节",
        )
    return int(value)


async def _apart(size: int, work: Any, *args: Any) -> Any:
    """Run what holds no lock of the interpreter in a thread, where it is long."""
    return work(*args) if size < AT_ONCE else await asyncio.to_thread(work, *args)


def unpack(body: bytes, coding: bytes, limit: int, name: str) -> bytes:
    """A compressed body, at most ``limit`` bytes large.

    Raises:
        Malformed: it is none. ScenariumError: SCN-4012 (larger).
    """
    bits = CODINGS.get(coding.strip().lower())
    shown = coding[:40].decode("latin-1")
    if bits is None:
        raise Malformed(f"has an unknown Content-Encoding {shown!r}", f"的 Content-Encoding {shown!r} 未知")
    try:
        machine = zlib.decompressobj(bits)
        found = machine.decompress(body, limit + 1)
    except zlib.error as fault:
        raise Malformed(f"is no {shown} ({fault})", f"不是有效的 {shown}（{fault}）") from None
    if len(found) > limit:
        raise ScenariumError("SCN-4012", limit=limit, name=name)
    if not machine.eof or machine.unused_data:
        raise Malformed(f"is no whole {shown}", f"不是完整的 {shown}")
    return found


def pack(body: bytes, coding: bytes) -> bytes:
    """The body, compressed quickly rather than well."""
    machine = zlib.compressobj(1, wbits=CODINGS[coding])
    return machine.compress(body) + machine.flush()


def _coding(accepted: bytes) -> bytes:
    """The first coding that a client accepts and we know."""
    for each in accepted.lower().split(b","):
        name, _, quality = each.partition(b";")
        if name.strip() in CODINGS and quality.replace(b" ", b"") not in (b"q=0", b"q=0.0"):
            return name.strip()
    return b""
