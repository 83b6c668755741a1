"""What the OpenAPI document says of the routes that describe and administer: their answers' schemas, parameters and errors."""

from __future__ import annotations

from typing import Any

from scenarium.gateway.job_file import STATES as JOB_STATES

LARGEST_PAGE = 500
"""Jobs of one page of ``GET /jobs``."""

TEXTS = {
    "en": {
        "list": "All scenarios",
        "show": "Schema, sample, model card, metrics and state",
        "health": "Liveness",
        "ready": "Readiness of the gateway and of the scenarios marked required",
        "scenario_ready": "Readiness of one scenario",
        "metrics": "Prometheus metrics",
        "document": "This document",
        "page": "A page that shows this document",
        "asset": "A file of that page",
        "reload": "Read the settings and what is installed again",
        "status": "Scenarios, versions, workers, memory, queues and counts",
        "logs": "The last lines that a scenario's workers printed",
        "list_jobs": "Your jobs, newest first",
        "show_job": "State, progress, times and error of a job",
        "result": "What the job answered, with the answer's own status",
        "cancel": "End a job that has not ended",
        "problem": "Problem details (RFC 9457) with a stable code",
    },
    "zh": {
        "list": "全部场景",
        "show": "模式、示例、模型卡、指标与状态",
        "health": "存活检查",
        "ready": "网关与必需场景的就绪检查",
        "scenario_ready": "单个场景的就绪检查",
        "metrics": "Prometheus 指标",
        "document": "本文档",
        "page": "展示本文档的页面",
        "asset": "该页面的文件",
        "reload": "重新读取设置与已安装的内容",
        "status": "场景、版本、worker、内存、队列与计数",
        "logs": "某场景的 worker 最近输出的内容",
        "list_jobs": "您的任务，最新的在前",
        "show_job": "任务的状态、进度、时间与错误",
        "result": "任务的结果，状态码与该预测一致",
        "cancel": "取消尚未结束的任务",
        "problem": "问题详情（RFC 9457），带有稳定的错误码",
    },
}


def problem(lang: str) -> dict[str, Any]:
    """Problem details as an answer."""
    return {"description": TEXTS[lang]["problem"], "content": {"application/problem+json": {"schema": _ref("Problem")}}}


def paths(lang: str) -> dict[str, Any]:
    """The routes that are the same whatever scenarios there are, but those below ``/scenarios/{name}``."""
    text = TEXTS[lang]
    ready = _json({"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}, "waiting_for": {"type": "object"}}})
    name, file = _path("name"), {**_path("file"), "schema": {"type": "string"}}
    after = {"name": "after", "in": "query", "schema": {"type": "integer"}}
    lines = {"type": "object", "required": ["lines"], "properties": {"lines": {"type": "array", "items": {"type": "object"}}}}
    reloaded = {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}}
    nothing = {"required": True, "content": {"application/json": {"schema": {}}}}
    scenarios = {"type": "object", "required": ["scenarios"], "properties": {"scenarios": {"type": "array", "items": _ref("Scenario")}}}
    return {
        "/scenarios": {"get": _operation(lang, text["list"], "list_scenarios", _json(scenarios))},
        "/healthz": {"get": _operation(lang, text["health"], "healthz", _json({"type": "object", "required": ["status"]}), ())},
        "/readyz": {"get": _both(_operation(lang, text["ready"], "readyz", ready, ()), ready)},
        "/metrics": {"get": _operation(lang, text["metrics"], "metrics", {"text/plain": {"schema": {"type": "string"}}})},
        "/openapi.json": {"get": _operation(lang, text["document"], "openapi", _json({"type": "object", "required": ["openapi", "paths"]}))},
        "/docs": {"get": _operation(lang, text["page"], "docs", {"text/html": {"schema": {"type": "string"}}})},
        "/docs/{file}": {"get": _operation(lang, text["asset"], "docs_file", {"*/*": {}}, ("401", "404"), file)},
        "/admin/status": {"get": _operation(lang, text["status"], "status", _json({"type": "object", "required": ["gateway", "scenarios"]}), ("401", "403"))},
        "/admin/logs/{name}": {"get": _operation(lang, text["logs"], "logs", _json(lines), ("400", "401", "403", "404"), name, after)},
        "/admin/reload": {
            "post": _operation(lang, text["reload"], "reload", _json(reloaded), ("400", "401", "403", "409", "415", "422")) | {"requestBody": nothing}
        },
        **_jobs(lang),
    }


def of_scenario(name: str, lang: str) -> dict[str, Any]:
    """The routes that show one scenario."""
    text = TEXTS[lang]
    schema = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}, "error": {"anyOf": [_ref("Problem"), {"type": "null"}]}}}
    shown = _operation(lang, text["show"], f"show_{name}", _json(_ref("Scenario")), ("401", "404"), tag=name)
    ready = _operation(lang, text["scenario_ready"], f"ready_{name}", _json(schema), ("401", "404"), tag=name)
    return {f"/scenarios/{name}": {"get": shown}, f"/scenarios/{name}/ready": {"get": _both(ready, _json(schema))}}


def _jobs(lang: str) -> dict[str, Any]:
    """The routes below ``/jobs``."""
    text, ident = TEXTS[lang], _path("ident")
    choices = {
        "scenario": {"type": "string"},
        "state": {"type": "string", "enum": list(JOB_STATES)},
        "after": {"type": "string"},
        "limit": {"type": "integer", "minimum": 1, "maximum": LARGEST_PAGE},
    }
    query = [{"name": name, "in": "query", "schema": schema} for name, schema in choices.items()]
    page = {
        "type": "object",
        "required": ["jobs", "next"],
        "properties": {"jobs": {"type": "array", "items": _ref("Job")}, "next": {"type": ["string", "null"]}},
    }
    ended = ("401", "404", "409", "410", "422", "500", "503", "504", "507")
    job = _json(_ref("Job"))
    return {
        "/jobs": {"get": _operation(lang, text["list_jobs"], "list_jobs", _json(page), ("400", "401", "404", "503"), *query)},
        "/jobs/{ident}": {
            "get": _operation(lang, text["show_job"], "show_job", job, ("401", "404", "503"), ident),
            "delete": _operation(lang, text["cancel"], "cancel_job", job, ("401", "404", "503"), ident),
        },
        "/jobs/{ident}/result": {"get": _operation(lang, text["result"], "result_job", {"application/json": {}, "application/x-ndjson": {}}, ended, ident)},
    }


def _operation(
    lang: str, summary: str, ident: str, content: dict[str, Any], errors: tuple[str, ...] = ("401",), *parameters: dict[str, Any], tag: str = "gateway"
) -> dict[str, Any]:
    responses = {"200": {"description": "OK", "content": content}, **dict.fromkeys(errors, problem(lang))}
    found: dict[str, Any] = {"summary": summary, "operationId": ident, "tags": [tag], "responses": responses}
    return found | ({"parameters": list(parameters)} if parameters else {})


def _both(operation: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """Readiness: 503 has the form of 200."""
    operation["responses"]["503"] = {"description": "-", "content": content}
    return operation


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_TIME = {"type": ["string", "null"], "format": "date-time"}

SCHEMAS: dict[str, Any] = {
    "Problem": {
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
    },
    "Scenario": {
        "type": "object",
        "required": ["name", "plugin", "state", "version", "url"],
        "properties": {
            "name": {"type": "string"},
            "plugin": {"type": "string"},
            "state": {"type": "string", "enum": ["untrained", "starting", "ready", "idle", "failed", "stopped"]},
            "version": {"type": ["integer", "null"]},
            "data_origin": {"type": ["string", "null"]},
            "metric": {"type": ["string", "null"]},
            "value": {"type": ["number", "null"]},
            "streams": {"type": "boolean"},
            "url": {"type": "string"},
            "error": _ref("Problem"),
        },
    },
    "Job": {
        "type": "object",
        "required": ["id", "scenario", "mode", "state", "created", "url", "result"],
        "properties": {
            "id": {"type": "string"},
            "scenario": {"type": "string"},
            "mode": {"type": "string", "enum": ["one", "batch", "stream"]},
            "state": {"type": "string", "enum": list(JOB_STATES)},
            **dict.fromkeys(("created", "started", "ended", "expires"), _TIME),
            "version": {"type": ["integer", "null"]},
            "url": {"type": "string"},
            "result": {"type": "string"},
            "progress": {"type": "object"},
            "error": _ref("Problem"),
        },
    },
}
"""Components that every document has."""
