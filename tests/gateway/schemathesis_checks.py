"""What schemathesis checks of every answer beside its own checks; it loads this file by ``SCHEMATHESIS_HOOKS``."""

from __future__ import annotations

import json
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, Response
from schemathesis.specs.openapi.checks import negative_data_rejection, unsupported_method


@schemathesis.check
def no_fault_of_ours(ctx: CheckContext, response: Response, case: Case) -> None:
    """No 5xx, but that a scenario is not trained, and that the client itself gave no time."""
    if response.status_code < 500:
        return
    code = response.json().get("code")
    headers = {str(name).lower(): value for name, value in (case.headers or {}).items()}
    if code == "SCN-4004" or case.path.endswith("/ready"):
        return
    if code == "SCN-4007" and float(headers.get("x-scenarium-deadline-ms", "inf")) < 5000:
        return
    raise AssertionError(f"{response.status_code} {response.text[:500]}")


@schemathesis.check
def errors_are_problem_details(ctx: CheckContext, response: Response, case: Case) -> None:
    """Every error has its stable code, its texts and the request's id; nothing of a traceback."""
    if response.status_code < 400 or case.path in ("/readyz",) or case.path.endswith("/ready"):
        return
    problem: dict[str, Any] = response.json()
    assert problem["status"] == response.status_code
    assert problem["code"].startswith("SCN-")
    assert problem["title"]
    assert problem["hint"]
    assert response.headers["x-request-id"]
    assert "Traceback" not in response.text


@schemathesis.check
def bad_data_is_refused(ctx: CheckContext, response: Response, case: Case) -> None:
    """What breaks the schema gets no answer; but a header that nobody asked for is nobody's concern, an element of a batch has its problem
    in its place, and a job's body is judged when it runs."""
    unknown = "x-schemathesis-unknown-property" in {str(name).lower() for name in case.headers or {}}
    if not unknown and not case.path.endswith(("/batch", "/jobs")):
        negative_data_rejection(ctx, response, case)


@schemathesis.check
def other_methods_are_refused(ctx: CheckContext, response: Response, case: Case) -> None:
    """405; below ``/admin`` who sends no JSON may hear of that first (415)."""
    if not (case.path.startswith("/admin/") and response.status_code == 415):
        unsupported_method(ctx, response, case)


@schemathesis.deserializer("application/x-ndjson")
def ndjson(ctx: Any, response: Response) -> Any:
    """JSON lines, one value each."""
    return [json.loads(line) for line in response.content.splitlines()]
