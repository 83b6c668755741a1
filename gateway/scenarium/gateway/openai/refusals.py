"""Errors as the OpenAI API tells them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

AS_BAD_REQUEST = (415, 422)
"""Statuses that the API does not use for what is wrong with a request."""
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {"SCN-4101": "invalid_api_key", "SCN-4102": "invalid_api_key", "SCN-4302": "model_not_found", "SCN-4105": "rate_limit_exceeded"}
"""Codes that programs look for; else the project's own."""


def status(problem: Mapping[str, Any]) -> int:
    """The HTTP status of an error."""
    found: int = problem["status"]
    return 400 if found in AS_BAD_REQUEST else found


def error(problem: Mapping[str, Any], names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The API's error object for problem details; ``names``: the scenario's fields to the API's."""
    field, title, names = problem.get("field"), problem["title"], names or {}
    if field:
        head, dot, rest = field.partition(".")
        named = names.get(head, head) + dot + rest
        field, title = named, title.replace(repr(field), repr(named))
    kind = TYPES.get(problem["status"], "server_error" if problem["status"] >= 500 else "invalid_request_error")
    text = f"{title} {problem['hint']} ({problem['code']})".encode("utf8", "replace").decode()
    field = field and field.encode("utf8", "replace").decode()  # a client's own word may have no bytes
    return {"error": {"message": text, "type": kind, "param": field, "code": CODES.get(problem["code"], problem["code"])}}


def to_json(value: Any) -> bytes:
    """As JSON.

    Raises:
        UnicodeEncodeError: a text has half of a surrogate pair.
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
