"""From what a caller has to the bytes of a request: JSON, raw bytes, or a multipart upload."""

from __future__ import annotations

import base64
import io
import json
import mimetypes
from collections.abc import Mapping
from datetime import date, time
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import httpx

Value: TypeAlias = Any
"""A mapping of the request's fields, a pydantic model, or the bytes of a scenario that takes a file: ``bytes``, ``Path``, an open file, a PIL image."""

RAW = "application/octet-stream"


class Payload(NamedTuple):
    """A body and its content type."""

    content: bytes
    content_type: str


def payload(value: Value) -> Payload:
    """The body of one request. One file among plain fields goes as a multipart upload, which is a third smaller than base64.

    Raises:
        TypeError: it is none of the forms of ``Value``.
        OSError: a file cannot be read.
    """
    file = binary(value)
    if file is not None:
        kind = mimetypes.guess_type(value.name)[0] if isinstance(value, Path) else None
        return Payload(file, kind or RAW)
    fields = fields_of(value)
    files = {name: file for name, each in fields.items() if (file := binary(each)) is not None}
    plain = {name: each for name, each in fields.items() if name not in files}
    if len(files) == 1 and all(isinstance(each, (str, int, float)) for each in plain.values()):
        form = httpx.Request("POST", "http://localhost", data=plain, files=files)
        return Payload(form.read(), form.headers["content-type"])
    return Payload(to_json(fields), "application/json")


def to_json(value: Value) -> bytes:
    """One JSON document on one line; files within it are base64."""
    return json.dumps(value if isinstance(value, list) else fields_of(value), ensure_ascii=False, separators=(",", ":"), default=_plain).encode()


def fields_of(value: Value) -> Mapping[str, Any]:
    """The fields of a mapping or a pydantic model.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, Mapping):
        return value
    if hasattr(value, "model_dump"):
        found: Mapping[str, Any] = value.model_dump(by_alias=True, exclude_unset=True)
        return found
    raise TypeError(f"a request is a mapping, a pydantic model, bytes, a Path, an open file or a PIL image, not {type(value).__name__}")


def binary(value: Value) -> bytes | None:
    """The bytes of what is a file in some form; None: it is no file."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, Path):
        return value.read_bytes()
    if hasattr(value, "read"):
        found = value.read()
        return found.encode() if isinstance(found, str) else bytes(found)
    if type(value).__module__.partition(".")[0] == "PIL" and hasattr(value, "save"):
        buffer = io.BytesIO()
        value.save(buffer, "PNG")  # without loss
        return buffer.getvalue()
    return None


def _plain(value: Any) -> Any:
    """What ``json`` does not know: files, models, numpy's and the standard library's values."""
    file = binary(value)
    if file is not None:
        return base64.b64encode(file).decode("ascii")
    if hasattr(value, "model_dump") or isinstance(value, Mapping):
        return dict(fields_of(value))
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (date, time)):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
