"""The routes that describe: scenarios, health, readiness, metrics, OpenAPI and its page."""

from __future__ import annotations

import json
import traceback
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from scenarium.core.errors import ScenariumError
from scenarium.core.reasons import reason
from scenarium.gateway import administration, job_routes, logs, openapi, problems
from scenarium.gateway.admission import ADMIN
from scenarium.gateway.audit import Entry
from scenarium.gateway.metrics import GatewayCollector
from scenarium.gateway.predict import Call, send_problem

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from scenarium.gateway.app import Gateway
    from scenarium.gateway.services import Service

ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
"""Files of the Swagger page, served from the package that carries them."""

PAGE = """<!doctype html>
<html lang="{lang}">
<head>
<meta charset="utf-8">
<title>Scenarium</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="docs/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({{url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, docExpansion: "list", validatorUrl: null, tryItOutEnabled: true}});
</script>
</body>
</html>
"""


class Guard:
    """These routes behind the gateway's admission: closed unless it says otherwise. ``scope["caller"]`` is who calls. What is done
    below ``/admin/`` is written to the audit log."""

    def __init__(self, app: FastAPI, gateway: Gateway) -> None:
        self.app = app
        self.routes = app.routes
        self.gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope["headers"])
        method, path, audit = scope["method"], scope["path"], self.gateway.audit
        try:
            scope["caller"] = caller = self.gateway.admission.check(call, method, path)
            audited = audit if path.startswith(ADMIN) else None
            if audited:
                audited.check()
        except ScenariumError as error:
            await send_problem(send, error, call)
            return
        if audited is None:
            await self.app(scope, receive, send)
            return
        entry = Entry(method, path, None, caller)
        try:
            await self.app(scope, entry.receive(receive), entry.send(send))
        finally:
            audited.put(entry)


def create_app(gateway: Gateway) -> FastAPI:
    """The app of these routes, and of everything that is not there."""
    handlers: Any = {ScenariumError: _known, HTTPException: _http, RequestValidationError: _invalid, Exception: crashed}
    # Its own OpenAPI would describe only these routes; its telemetry would answer to variables that are meant for others.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, exception_handlers=handlers)
    _add_health(app, gateway)
    _add_scenarios(app, gateway)
    _add_docs(app, gateway)
    administration.add_routes(app, gateway, _json)
    job_routes.add_routes(app, gateway, _json)
    return app


async def _known(request: Request, error: ScenariumError) -> Response:
    return _problem(request, error)


async def _http(request: Request, error: HTTPException) -> Response:
    if error.status_code == 405:
        routes = (route for route in request.app.routes if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE)
        allowed = sorted({method for route in routes for method in route.methods or ()})  # the router itself names those of one route alone
        return _problem(request, ScenariumError("SCN-4016", method=request.method, path=request.url.path), {"allow": ", ".join(allowed)})
    return _problem(request, ScenariumError("SCN-4015", path=request.url.path))


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    """A parameter of the query: these routes have no others that can be wrong."""
    first = error.errors()[0]
    why, value = reason(first), str(first.get("input"))[:40]
    wanted_en, wanted_zh = f"valid ({why.en})", f"有效值（{why.zh}）"
    return _problem(request, ScenariumError("SCN-4129", field=str(first["loc"][-1]), value=value, wanted_en=wanted_en, wanted_zh=wanted_zh))


async def crashed(request: Request, fault: Exception) -> Response:
    """A fault of our own: a 500 with a code, and the traceback in the log."""
    response = _problem(request, ScenariumError("SCN-4019", reason=f"{type(fault).__name__}: {fault}"))
    logs.event("error", "gateway_fault", request_id=response.headers["x-request-id"], traceback="".join(traceback.format_exception(fault)))
    return response


def _problem(request: Request, error: ScenariumError, headers: dict[str, str] | None = None) -> Response:
    call = Call(request.scope["headers"])
    retry = {"retry-after": "1"} if error.status == 503 else {}
    found = {"x-request-id": call.rid_header.decode("latin-1"), **retry, **(headers or {})}
    return Response(problems.body(error, call.language), error.status, found, problems.PROBLEM.decode())


def _json(request: Request, value: Any, status: int = 200) -> Response:
    call = Call(request.scope["headers"])
    content = json.dumps(value, ensure_ascii=False, default=str).encode()
    return Response(content, status, {"x-request-id": call.rid_header.decode("latin-1")}, "application/json")


def _add_health(app: FastAPI, gateway: Gateway) -> None:
    registry = CollectorRegistry()
    registry.register(GatewayCollector(gateway.services, gateway))

    @app.get("/healthz")
    async def healthz(request: Request) -> Response:
        return _json(request, {"status": "ok"})

    @app.get("/readyz")
    async def readyz(request: Request) -> Response:
        waiting = {name: service.state for name, service in gateway.services.items() if service.config.required and not service.ready}
        refuses = gateway.audit is not None and gateway.audit.refuses
        ready = gateway.started and not gateway.draining and not waiting and not refuses
        status = "ready" if ready else "draining" if gateway.draining else "waiting"
        return _json(request, {"status": status, "waiting_for": waiting}, 200 if ready else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _add_scenarios(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/scenarios")
    async def scenarios(request: Request) -> Response:
        lang = Call(request.scope["headers"]).language
        return _json(request, {"scenarios": [row(service, lang) for service in gateway.services.values()]})

    @app.get("/scenarios/{name}")
    async def scenario(request: Request, name: str) -> Response:
        return _json(request, details(gateway.service(name), Call(request.scope["headers"]).language))

    @app.get("/scenarios/{name}/ready")
    async def scenario_ready(request: Request, name: str) -> Response:
        service = gateway.service(name)
        if (service.ready or service.state == "idle") and not gateway.draining:
            return _json(request, {"status": service.state, "version": service.served})
        return _json(request, {"status": service.state, "error": service.fault and service.fault.problem(Call(request.scope["headers"]).language)}, 503)


def row(service: Service, lang: str) -> dict[str, Any]:
    """One scenario as ``GET /scenarios`` lists it."""
    manifest = service.version.manifest if service.version else None
    found: dict[str, Any] = {
        "name": service.name,
        "plugin": service.plugin,
        "state": service.state,
        "version": service.served,
        "data_origin": manifest.data_origin if manifest else None,
        "metric": manifest.metric.name if manifest else None,
        "value": manifest.metrics.get(manifest.metric.name) if manifest else None,
        "streams": bool(manifest and manifest.streams),
        "url": f"/scenarios/{service.name}",
    }
    if service.fault:
        found["error"] = service.fault.problem(lang)
    return found


def details(service: Service, lang: str) -> dict[str, Any]:
    """One scenario with all that a client or an operator asks for."""
    found = row(service, lang)
    found["last_fault"] = service.last_fault and {**{k: v for k, v in service.last_fault.items() if k not in ("en", "zh")}, "error": service.last_fault[lang]}
    found["workers"] = [
        {"pid": link.process.pid, "seat": link.seat, "version": link.version, "ready": link.serving and link.well}
        for side in service.sides()
        for link in side.links()
    ]
    found["queue"] = service.batcher.depth
    if service.version is None:
        return found
    manifest = service.version.manifest
    return found | {
        "created": manifest.created,
        "plugin_release": {"distribution": manifest.plugin.distribution, "version": manifest.plugin.version},
        "schema": {"request": manifest.request_schema, "response": manifest.response_schema},
        "sample": manifest.sample,
        "answer": manifest.answer,
        "metrics": manifest.metrics,
        "baseline": {"name": manifest.baseline.name, "metrics": manifest.baseline.metrics} if manifest.baseline else None,
        "card": manifest.card.get(lang) or next(iter(manifest.card.values()), None),
        "cards": sorted(manifest.card),
        "pure": manifest.pure,
        "engine": service.engine,
        "deadline_ms": service.config.deadline_ms,
        "max_body_bytes": service.config.max_body_bytes,
    }


def _add_docs(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/openapi.json")
    async def schema(request: Request) -> Response:
        return _json(request, openapi.document(gateway.services.values(), Call(request.scope["headers"]).language, gateway.admission.keyring.asked))

    @app.get("/docs")
    async def page(request: Request) -> Response:
        return Response(PAGE.format(lang=Call(request.scope["headers"]).language), media_type="text/html; charset=utf-8")

    @app.get("/docs/{file}")
    async def asset(request: Request, file: str) -> Response:
        if file not in ASSETS:
            return _problem(request, ScenariumError("SCN-4015", path=request.url.path))
        content = files("fastapi_swagger.resources").joinpath(file).read_bytes()
        return Response(content, 200, {"cache-control": "public, max-age=86400"}, ASSETS[file])
