"""Errors as the v2 protocol tells them: one sentence, and a status of HTTP or of gRPC."""

from __future__ import annotations

import json
from typing import Any

from scenarium.core.errors import ScenariumError

BAD_REQUEST = 400
AS_BAD_REQUEST = (405, 409, 415, 422)
"""Statuses that Triton does not use for what is wrong with a request."""
GRPC = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""HTTP status to the name of the gRPC status (``grpc.StatusCode``); any other is INTERNAL."""


class Refusal(Exception):
    """A request that is not answered."""

    def __init__(self, status: int, text: str, version: int = 0, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        super().__init__(text)
        self.status = BAD_REQUEST if status in AS_BAD_REQUEST else status
        self.text = text
        self.version = version
        """Of the worker that refused it; 0: none did."""
        self.headers = headers or []

    @property
    def body(self) -> bytes:
        """The protocol's error object."""
        return json.dumps({"error": self.text}, ensure_ascii=False).encode()

    @property
    def grpc(self) -> str:
        """Name of the gRPC status."""
        return GRPC.get(self.status, "INTERNAL")


def of_error(error: ScenariumError, language: str) -> Refusal:
    """The refusal that says what ``error`` says."""
    return of_problem(error.problem(language), headers=list(getattr(error, "headers", ())))


def of_problem(problem: dict[str, Any], version: int = 0, headers: list[tuple[bytes, bytes]] | None = None) -> Refusal:
    """The refusal that says what problem details say."""
    return Refusal(problem["status"], f"{problem['code']}: {problem['title']} {problem['hint']}", version, headers)
