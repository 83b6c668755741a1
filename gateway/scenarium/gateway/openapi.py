"""The OpenAPI document: every scenario with its own request and answer, from the manifests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from scenarium.core.manifest import Manifest
from scenarium.gateway import openapi_cold
from scenarium.gateway.cache import FOUND
from scenarium.gateway.requests import PRIORITIES

if TYPE_CHECKING:
    from scenarium.gateway.services import Service

TEXTS = {
    "en": {
        "predict": "One answer",
        "batch": "Many answers: a JSON array or JSON lines in, answers in order out",
        "stream": "The parts of one answer, as server-sent events",
        "untrained": "Not trained yet. Run: scenarium train {name}",
        "answer": "The answer",
        "origin": "Trained on {origin} data; {metric} {value} on held-out rows.",
        "deadline": "Milliseconds that the answer may take; at most the configured deadline",
        "key": "Routing key: requests with one key go to one worker",
        "priority": "Order among what waits; nobody starves",
        "id": "Request id, up to 128 letters, digits and ._:/+=@-; made by the gateway where it is left out or has another form",
        "jobs": "One answer, later: the answer is a job that GET /jobs/{ident} shows",
        "accepted": "The job; its URL is the header Location",
        "once": "The same key with the same request gives the same job again",
        "mode": "1: the body is that of {path}",
        "secret": "An API key (scenarium keys create)",
    },
    "zh": {
        "predict": "单次预测",
        "batch": "批量预测：输入 JSON 数组或 JSON Lines，按顺序输出结果",
        "stream": "以服务器推送事件（SSE）逐步返回结果",
        "untrained": "尚未训练。请运行：scenarium train {name}",
        "answer": "预测结果",
        "origin": "训练数据来源：{origin}；留出数据上 {metric} 为 {value}。",
        "deadline": "允许的毫秒数，不超过配置的时限",
        "key": "路由键：相同的键由同一个 worker 处理",
        "priority": "排队中的先后次序；不会有请求一直等不到",
        "id": "请求 id，最多 128 个字母、数字或 ._:/+=@-；省略或形式不符时由网关生成",
        "jobs": "稍后获取的预测：返回任务，可用 GET /jobs/{ident} 查看",
        "accepted": "任务；其 URL 在 Location 头中",
        "once": "相同的键与相同的请求得到同一个任务",
        "mode": "1：请求体与 {path} 相同",
        "secret": "API 密钥（scenarium keys create）",
    },
}


def document(services: Iterable[Service], lang: str, keys: bool) -> dict[str, Any]:
    """The whole document, OpenAPI 3.1, whose schemas are the manifests' JSON Schemas as they are. ``keys``: whether an API key is asked for."""
    text = TEXTS[lang]
    schemas: dict[str, Any] = dict(openapi_cold.SCHEMAS)
    paths = openapi_cold.paths(lang)
    tags = []
    for service in services:
        name = service.name
        manifest = service.version.manifest if service.version else None
        tags.append({"name": name, "description": _about(name, manifest, text)})
        paths |= openapi_cold.of_scenario(name, lang)
        paths[f"/scenarios/{name}/predict"] = {"post": _post(name, manifest, lang, "predict", schemas)}
        paths[f"/scenarios/{name}/predict/batch"] = {"post": _post(name, manifest, lang, "batch", schemas)}
        paths[f"/scenarios/{name}/jobs"] = {"post": _job_post(name, manifest, lang, schemas)}
        if manifest and manifest.streams:
            paths[f"/scenarios/{name}/stream"] = {"post": _post(name, manifest, lang, "stream", schemas)}
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


def _post(name: str, manifest: Manifest | None, lang: str, kind: str, schemas: dict[str, Any]) -> dict[str, Any]:
    text, problem = TEXTS[lang], openapi_cold.problem(lang)
    operation: dict[str, Any] = {
        "summary": text[kind],
        "operationId": f"{kind}_{name}",
        "tags": [name],
        "parameters": [
            _header("X-Scenarium-Deadline-Ms", text["deadline"], {"type": "number", "exclusiveMinimum": 0}),
            _header("X-Scenarium-Key", text["key"], {"type": "string", "maxLength": 256}),
            _header("X-Scenarium-Priority", text["priority"], {"type": "string", "enum": list(PRIORITIES)}),
            _header("X-Request-Id", text["id"], {"type": "string"}),
        ],
        "responses": dict.fromkeys(("400", "401", "403", "404", "408", "413", "415", "422", "429", "500", "503", "504"), problem),
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
            {"text/event-stream": {}}
            if kind == "stream"
            else {"application/json": {"schema": response, **({"example": manifest.answer} if manifest.answer else {})}}
        )
    operation["requestBody"] = {"required": True, "content": body}
    headers = {**_ANSWER_HEADERS, **(_KEPT if kind == "predict" and manifest.pure else {})}
    operation["responses"] = {"200": {"description": text["answer"], "content": answer, "headers": headers}, **operation["responses"]}
    return operation


def _job_post(name: str, manifest: Manifest | None, lang: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """``/scenarios/{name}/jobs``: the request of ``/predict``, an answer of its own. Jobs wait at low priority, whatever a header says."""
    text, operation = TEXTS[lang], _post(name, manifest, lang, "jobs", schemas)
    operation["parameters"] = [each for each in operation["parameters"] if each["name"] != "X-Scenarium-Priority"]
    modes = {"batch": "/predict/batch", "stream": "/stream"}
    operation["parameters"] += [
        _header("Idempotency-Key", text["once"], {"type": "string", "minLength": 1, "maxLength": 255}),
        *(
            {"name": mode, "in": "query", "description": text["mode"].format(path=path), "schema": {"type": "string", "enum": ["0", "1"]}}
            for mode, path in modes.items()
        ),
    ]
    operation["responses"].pop("200", None)
    job = {"application/json": {"schema": {"$ref": "#/components/schemas/Job"}}}
    operation["responses"] |= {"202": {"description": text["accepted"], "content": job, "headers": {"Location": _LOCATION}, "links": _LINKS}}
    operation["responses"]["507"] = openapi_cold.problem(lang)
    return operation


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


_LOCATION = {"schema": {"type": "string"}}

_LINKS = {name: {"operationId": f"{name}_job", "parameters": {"ident": "$response.body#/id"}} for name in ("show", "result", "cancel")}

_ANSWER_HEADERS = {
    "X-Scenarium-Version": {"description": "Number of the version that answered", "schema": {"type": "integer"}},
    "X-Request-Id": {"schema": {"type": "string"}},
}
_KEPT = {"X-Scenarium-Cache": {"description": "Where answers are kept: how this one was found", "schema": {"type": "string", "enum": list(FOUND)}}}
