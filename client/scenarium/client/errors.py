"""What can go wrong for a caller: the gateway's own error, no answer at all, no answer in time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeGuard

import httpx


class ScenariumAPIError(Exception):
    """The gateway refused a request, or could not answer it. Its members come from the problem details (RFC 9457) of the answer."""

    def __init__(self, problem: Mapping[str, Any], status: int, request_id: str | None = None, retry_after: float | None = None) -> None:
        self.problem = dict(problem)
        """The whole document."""
        self.status = status
        """The HTTP status."""
        self.code: str | None = self.problem.get("code")
        """The stable code, ``SCN-4001``; None where no gateway of Scenarium answered (a proxy before it)."""
        self.title = str(self.problem.get("title", ""))
        """What is wrong."""
        self.detail: str | None = self.problem.get("detail")
        self.hint: str | None = self.problem.get("hint")
        """What to do about it."""
        self.field: str | None = self.problem.get("field")
        """The field of the request that is at fault."""
        self.request_id = request_id
        """What the gateway's log calls the request."""
        self.retry_after = retry_after
        """Seconds after which the gateway would like to be asked again."""
        super().__init__(f"{self.code or status} {self.title}" + (f"\n  {self.hint}" if self.hint else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problem, self.status, self.request_id, self.retry_after)


class ScenariumConnectionError(ConnectionError):
    """Nobody answered, or the connection broke before the answer was complete."""


class DeadlineExceeded(TimeoutError):
    """There was no answer within the deadline, and no time for another attempt."""


def of_response(response: httpx.Response) -> ScenariumAPIError:
    """The error that an answer with a status of 400 or more is. Its body must have been read."""
    try:
        found = json.loads(response.content)
    except ValueError:
        found = None
    problem = found if isinstance(found, dict) and "title" in found else {"title": f"{response.status_code} {response.reason_phrase}".strip()}
    return ScenariumAPIError(problem, response.status_code, response.headers.get("x-request-id"), seconds(response.headers.get("retry-after")))


def seconds(value: str | None) -> float | None:
    """The seconds of a ``Retry-After``; None where there is none, or a date, which gateways do not send."""
    try:
        found = float(value or "")
    except ValueError:
        return None
    return found if 0 <= found < float("inf") else None


def is_problem(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether an element of a batch's answers, or what an ``error`` event brings, is a problem rather than an answer."""
    return isinstance(value, dict) and str(value.get("type", "")).startswith("urn:scenarium:error:") and "code" in value


def of_problem(problem: Mapping[str, Any], request_id: str | None = None) -> ScenariumAPIError:
    """The error that problem details within a body are."""
    return ScenariumAPIError(problem, int(problem.get("status", 500)), request_id)
