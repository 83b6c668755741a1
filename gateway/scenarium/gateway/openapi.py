"""The OpenAPI document: every scenario with its own request and answer, from the manifests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from scenarium.core.manifest import Manifest
from scenarium.gateway.batching import PRIORITIES
from scenarium.gateway.job_file import STATES

if TYPE_CHECKING:
    from scenarium.gateway.services import Service

LARGEST_PAGE = 500
"""Jobs of one page of ``GET /jobs``."""

TEXTS = {
    "en": {
        "predict": "One answer",
        "batch": "Many answers: a JSON array or JSON lines in, answers in order out",
        "stream": "The parts of one answer, as server-sent events",
        "show": "Schema, sample, model card, metrics and state",
        "list": "All scenarios",
        "untrained": "Not trained yet. Run: scenarium train {name}",
        "answer": "The answer",
        "problem": "Problem details (RFC 9457) with a stable code",
        "origin": "Trained on {origin} data; {metric} {value} on held-out rows.",
        "deadline": "Milliseconds that the answer may take; at most the configured deadline",
        "key": "Routing key: requests with one key go to one worker",
        "priority": "Order among what waits; nobody starves",
        "id": "Request id; made by the gateway where it is left out",
        "health": "Liveness",
        "jobs": "One answer, later: the answer is a job that GET /jobs/{ident} shows",
        "list_jobs": "Your jobs, newest first",
        "show_job": "State, progress, times and error of a job",
        "result": "What the job answered, with the answer's own status",
        "cancel": "End a job that has not ended",
        "accepted": "The job; its URL is the header Location",
        "once": "The same key with the same request gives the same job again",
        "mode": "1: the body is that of {path}",
        "ready": "Readiness of the gateway and of the scenarios marked required",
        "metrics": "Prometheus metrics",
        "secret": "An API key (scenarium keys create)",
    },
    "zh": {
        "predict": "单次预测",
        "batch": "批量预测：输入 JSON 数组或 JSON Lines，按顺序输出结果",
        "stream": "以服务器推送事件（SSE）逐步返回结果",
        "show": "模式、示例、模型卡、指标与状态",
        "list": "全部场景",
        "untrained": "尚未训练。请运行：scenarium train {name}",
        "answer": "预测结果",
        "problem": "问题详情（RFC 9457），带有稳定的错误码",
        "origin": "训练数据来源：{origin}；留出数据上 {metric} 为 {value}。",
        "deadline": "允许的毫秒数，不超过配置的时限",
        "key": "路由键：相同的键由同一个 worker 处理",
        "priority": "排队中的先后次序；不会有请求一直等不到",
        "id": "请求 id；省略时由网关生成",
        "health": "存活检查",
        "jobs": "稍后获取的预测：返回任务，可用 GET /jobs/{ident} 查看",
        "list_jobs": "您的任务，最新的在前",
        "show_job": "任务的状态、进度、时间与错误",
        "result": "任务的结果，状态码与该预测一致",
        "cancel": "取消尚未结束的任务",
        "accepted": "任务；其 URL 在 Location 头中",
        "once": "相同的键与相同的请求得到同一个任务",
        "mode": "1：请求体与 {path} 相同",
        "ready": "网关与必需场景的就绪检查",
        "metrics": "Prometheus 指标",
        "secret": "API 密钥（scenarium keys create）",
    },
}


def document(services: Iterable[Service], lang: str, keys: bool) -> dict[str, Any]:
    """The whole document, OpenAPI 3.1, whose schemas are the manifests' JSON Schemas as they are. ``keys``: whether an API key is asked for."""
    text = TEXTS[lang]
    schemas: dict[str, Any] = {"Problem": PROBLEM_SCHEMA}
    paths: dict[str, Any] = {
        "/scenarios": {"get": _get(text["list"], "list_scenarios")},
        "/healthz": {"get": _get(text["health"], "healthz")},
        "/readyz": {"get": _get(text["ready"], "readyz")},
        "/metrics": {"get": _get(text["metrics"], "metrics", "text/plain")},
        **_jobs(text),
    }
    tags = []
    for service in services:
        name = service.name
        manifest = service.version.manifest if service.version else None
        tags.append({"name": name, "description": _about(name, manifest, text)})
        paths[f"/scenarios/{name}"] = {"get": _get(text["show"], f"show_{name}", tag=name)}
        paths[f"/scenarios/{name}/predict"] = {"post": _post(name, manifest, text, "predict", schemas)}
        paths[f"/scenarios/{name}/predict/batch"] = {"post": _post(name, manifest, text, "batch", schemas)}
        paths[f"/scenarios/{name}/jobs"] = {"post": _job_post(name, manifest, text, schemas)}
        if manifest and manifest.streams:
            paths[f"/scenarios/{name}/stream"] = {"post": _post(name, manifest, text, "stream", schemas)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Scenarium", "version": "1"},
        "tags": tags,
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": text["secret"]}}},
        **({"security": [{"key": []}]} if keys else {}),
    }


def _about(name: str, manifest: Manifest | None, text: dict[str, str]) -> str:
    if manifest is None:
        return text["untrained"].format(name=name)
    value = manifest.metrics.get(manifest.metric.name)
    shown = "-" if value is None else f"{value:.4g}"
    return text["origin"].format(origin=manifest.data_origin, metric=manifest.metric.name, value=shown)


def _get(summary: str, ident: str, media: str = "application/json", tag: str = "gateway") -> dict[str, Any]:
    return {"summary": summary, "operationId": ident, "tags": [tag], "responses": {"200": {"description": "OK", "content": {media: {}}}}}


def _post(name: str, manifest: Manifest | None, text: dict[str, str], kind: str, schemas: dict[str, Any]) -> dict[str, Any]:
    problem = _problem(text)
    operation: dict[str, Any] = {
        "summary": text[kind],
        "operationId": f"{kind}_{name}",
        "tags": [name],
        "parameters": [
            _header("X-Scenarium-Deadline-Ms", text["deadline"], {"type": "number", "exclusiveMinimum": 0}),
            _header("X-Scenarium-Key", text["key"], {"type": "string", "maxLength": 256}),
            _header("X-Scenarium-Priority", text["priority"], {"type": "string", "enum": list(PRIORITIES)}),
            _header("X-Request-Id", text["id"], {"type": "string", "maxLength": 128}),
        ],
        "responses": dict.fromkeys(("400", "401", "403", "408", "413", "422", "429", "500", "503", "504"), problem),
    }
    if manifest is None:
        operation["description"] = text["untrained"].format(name=name)
        return operation
    request = _component(schemas, f"{name}.request", manifest.request_schema)
    response = _component(schemas, f"{name}.response", manifest.response_schema)
    if kind == "batch":
        body = {
            "application/json": {"schema": {"type": "array", "items": request}, "example": [manifest.sample]},
            "application/x-ndjson": {"schema": {"type": "string"}},
        }
        each = {"anyOf": [response, {"$ref": "#/components/schemas/Problem"}]}
        answer = {"application/json": {"schema": {"type": "array", "items": each}, "example": [manifest.answer]}, "application/x-ndjson": {"schema": {}}}
    else:
        body = {"application/json": {"schema": request, "example": manifest.sample}, **_binary(manifest.request_schema)}
        answer = (
            {"text/event-stream": {"schema": {"type": "string"}}}
            if kind == "stream"
            else {"application/json": {"schema": response, **({"example": manifest.answer} if manifest.answer else {})}}
        )
    operation["requestBody"] = {"required": True, "content": body}
    operation["responses"] = {"200": {"description": text["answer"], "content": answer, "headers": _ANSWER_HEADERS}, **operation["responses"]}
    return operation


def _jobs(text: dict[str, str]) -> dict[str, Any]:
    """The routes below ``/jobs``."""
    ident = {"name": "ident", "in": "path", "required": True, "schema": {"type": "string"}}
    missing = {"404": _problem(text)}
    choices = {
        "scenario": {"type": "string"},
        "state": {"type": "string", "enum": list(STATES)},
        "after": {"type": "string"},
        "limit": {"type": "integer", "minimum": 1, "maximum": LARGEST_PAGE},
    }
    listing = _get(text["list_jobs"], "list_jobs")
    listing["parameters"] = [{"name": name, "in": "query", "schema": schema} for name, schema in choices.items()]
    listing["responses"] |= missing | {"400": _problem(text)}
    found: dict[str, Any] = {"/jobs": {"get": listing}}
    for path, method, key in (("/jobs/{ident}", "get", "show_job"), ("/jobs/{ident}", "delete", "cancel"), ("/jobs/{ident}/result", "get", "result")):
        operation = _get(text[key], f"{key}_job" if key != "show_job" else key)
        operation["parameters"] = [ident]
        operation["responses"] |= missing | (dict.fromkeys(("409", "410", "422", "500", "504", "507"), _problem(text)) if key == "result" else {})
        found.setdefault(path, {})[method] = operation
    return found


def _job_post(name: str, manifest: Manifest | None, text: dict[str, str], schemas: dict[str, Any]) -> dict[str, Any]:
    """``/scenarios/{name}/jobs``: the request of ``/predict``, an answer of its own."""
    operation = _post(name, manifest, text, "jobs", schemas)
    modes = {"batch": "/predict/batch", "stream": "/stream"}
    operation["parameters"] += [
        _header("Idempotency-Key", text["once"], {"type": "string", "minLength": 1, "maxLength": 255}),
        *(
            {"name": mode, "in": "query", "description": text["mode"].format(path=path), "schema": {"type": "string", "enum": ["0", "1"]}}
            for mode, path in modes.items()
        ),
    ]
    operation["responses"].pop("200", None)
    operation["responses"] |= {"202": {"description": text["accepted"], "content": {"application/json": {}}, "headers": {"Location": _LOCATION}}}
    return operation


def _problem(text: dict[str, str]) -> dict[str, Any]:
    return {"description": text["problem"], "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}


def _header(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def _component(schemas: dict[str, Any], name: str, schema: dict[str, Any]) -> dict[str, str]:
    """File a JSON Schema and its ``$defs`` under the scenario's own names."""

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: _moved_ref(name, each) if key == "$ref" and isinstance(each, str) else moved(each) for key, each in value.items()}
        return [moved(each) for each in value] if isinstance(value, list) else value

    schemas[name] = moved({key: value for key, value in schema.items() if key != "$defs"})
    for inner, definition in schema.get("$defs", {}).items():
        schemas[f"{name}.{inner}"] = moved(definition)
    return {"$ref": f"#/components/schemas/{name}"}


def _moved_ref(name: str, ref: str) -> str:
    return f"#/components/schemas/{name}.{ref.removeprefix('#/$defs/')}" if ref.startswith("#/$defs/") else ref


def _binary(schema: dict[str, Any]) -> dict[str, Any]:
    """The other forms of a request that has a ``bytes`` field: the bytes themselves, or an upload."""
    fields = schema.get("properties", {})
    raw = next((field for field, info in fields.items() if _is_bytes(info)), None)
    if raw is None:
        return {}
    properties = {field: {"type": "string", "format": "binary"} if field == raw else info for field, info in fields.items() if "$ref" not in str(info)}
    return {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {"schema": {"type": "object", "properties": properties, "required": [raw]}},
    }


def _is_bytes(info: dict[str, Any]) -> bool:
    return any(each.get("format") in ("base64url", "base64", "binary") for each in (info, *info.get("anyOf", ())))


PROBLEM_SCHEMA = {
    "type": "object",
    "title": "Problem details (RFC 9457)",
    "required": ["type", "title", "status", "code", "hint"],
    "properties": {
        "type": {"type": "string", "examples": ["urn:scenarium:error:SCN-4001"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "pattern": "^SCN-[0-9]{4}$"},
        "hint": {"type": "string"},
        "field": {"type": "string"},
    },
}

_LOCATION = {"schema": {"type": "string"}}

_ANSWER_HEADERS = {
    "X-Scenarium-Version": {"description": "Number of the version that answered", "schema": {"type": "integer"}},
    "X-Request-Id": {"schema": {"type": "string"}},
}
