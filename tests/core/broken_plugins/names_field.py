"""Fault: the error for a wrong field names no field of the request."""

from __future__ import annotations

from pydantic import field_validator

from healthy import *
from scenarium.core import BadInput


class Strict(Request):
    text: str = ""

    @field_validator("text", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        if not isinstance(value, str) or not value:
            raise BadInput("body", "cannot be read", "无法读取")
        return value


@hookimpl
def schema() -> Schema:
    return Schema(Strict, Answer)


@hookimpl
def sample() -> Strict:
    return Strict(text="a great film")
