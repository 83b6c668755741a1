"""Errors as answers: RFC 9457 problem details in the client's language."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from scenarium.core.errors import ScenariumError
from scenarium.gateway import memory
from scenarium.gateway.requests import Outcome

if TYPE_CHECKING:
    from scenarium.gateway.services import Service

PROBLEM = b"application/problem+json"


def body(error: ScenariumError, language: str) -> bytes:
    """The problem details of ``error``."""
    return json.dumps(error.problem(language), ensure_ascii=False).encode()


def of_failure(service: Service, outcome: Outcome, deadline_ms: float) -> ScenariumError:
    """The error that stands for a request that its worker did not answer."""
    name = service.name
    if outcome.failure == "busy":
        return ScenariumError("SCN-4006", name=name, waiting=service.batcher.depth)
    if outcome.failure == "deadline":
        return ScenariumError("SCN-4007", name=name, ms=round(deadline_ms))
    if outcome.failure == "died":
        return ScenariumError("SCN-4008", name=name)
    if outcome.failure == "poison":
        return ScenariumError("SCN-4009", name=name)
    if outcome.failure == "slow":
        return ScenariumError("SCN-4017")
    if outcome.failure == "memory":
        return ScenariumError(memory.NOT_NOW, name=name)
    if service.unloaded:
        return ScenariumError("SCN-4208", name=name)
    return service.fault or ScenariumError("SCN-4013")
