"""Base classes of requests and answers."""

from __future__ import annotations

import base64
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, PlainSerializer, WithJsonSchema
from pydantic_core import CoreSchema

from scenarium.core.settings import DESCRIBED

Base64 = Annotated[
    bytes,
    PlainSerializer(lambda value: base64.b64encode(value).decode("ascii"), return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]
"""Bytes of an answer in the standard base64 alphabet, which ``data:`` URLs and every client's decoder take. pydantic's own
writes the URL-safe one; reading takes both."""


def _fail_fast(schema: Any) -> None:
    """Have every collection within a core schema end at its first fault."""
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "dict", "tuple", "set", "frozenset"):
            schema["fail_fast"] = True
        for key, value in schema.items():
            if key not in ("metadata", "serialization"):
                _fail_fast(value)
    elif isinstance(schema, (list, tuple)):
        for each in schema:
            _fail_fast(each)


class Request(BaseModel):
    """One request. Unknown fields are refused, and numbers that are none (NaN) or infinite; ``bytes`` fields travel as base64 in JSON.

    A list or object ends at its first fault: pydantic keeps every one, and a million of them take seconds and gigabytes.
    """

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        val_json_bytes="base64",
        ser_json_bytes="base64",
        use_attribute_docstrings=DESCRIBED,
        protected_namespaces=(),
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        found = handler(source)
        _fail_fast(found)
        return found


class Response(BaseModel):
    """One answer. ``bytes`` fields travel as base64 in JSON."""

    model_config = ConfigDict(extra="forbid", val_json_bytes="base64", ser_json_bytes="base64", use_attribute_docstrings=DESCRIBED, protected_namespaces=())
