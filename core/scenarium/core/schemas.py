"""Base classes of requests and answers."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Request(BaseModel):
    """One request. Unknown fields are refused; ``bytes`` fields travel as base64 in JSON."""

    model_config = ConfigDict(extra="forbid", val_json_bytes="base64", ser_json_bytes="base64", use_attribute_docstrings=True, protected_namespaces=())


class Response(BaseModel):
    """One answer. ``bytes`` fields travel as base64 in JSON."""

    model_config = ConfigDict(extra="forbid", val_json_bytes="base64", ser_json_bytes="base64", use_attribute_docstrings=True, protected_namespaces=())
