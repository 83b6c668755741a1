"""Base classes of requests and answers."""

from __future__ import annotations

import base64
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer, WithJsonSchema

from scenarium.core.settings import DESCRIBED

Base64 = Annotated[
    bytes,
    PlainSerializer(lambda value: base64.b64encode(value).decode("ascii"), return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]
"""Bytes of an answer in the standard base64 alphabet, which ``data:`` URLs and every client's decoder take. pydantic's own
writes the URL-safe one; reading takes both."""


class Request(BaseModel):
    """One request. Unknown fields are refused; ``bytes`` fields travel as base64 in JSON."""

    model_config = ConfigDict(extra="forbid", val_json_bytes="base64", ser_json_bytes="base64", use_attribute_docstrings=DESCRIBED, protected_namespaces=())


class Response(BaseModel):
    """One answer. ``bytes`` fields travel as base64 in JSON."""

    model_config = ConfigDict(extra="forbid", val_json_bytes="base64", ser_json_bytes="base64", use_attribute_docstrings=DESCRIBED, protected_namespaces=())
