"""From the bytes of a request body to the plugin's request class.

JSON, raw bytes and multipart uploads are told apart by the schema and the first bytes, so plain ``curl -d`` (which claims to be
a form) and ``curl --data-binary @photo.jpg`` both work.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart import parse_form

from scenarium.core.errors import BadInput, ScenariumError
from scenarium.core.reasons import reason

R = TypeVar("R", bound=BaseModel)


def decode(body: bytes, content_type: str, cls: type[R], sample: str = "{}") -> R:
    """Validate one body against ``cls``.

    Raises:
        ScenariumError: SCN-4001 (names the field), SCN-4002 (not JSON).
    """
    raw = bytes_field(cls)
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return validate(cls, _multipart(body, content_type, raw))
    start = body.lstrip()[:1]
    if raw and start not in (b"{", b"[") and kind != "application/json":
        return validate(cls, {raw: body})
    try:
        return cls.model_validate_json(body)
    except ValidationError as fault:
        raise problem(fault, sample) from None


def bytes_field(cls: type[BaseModel]) -> str | None:
    """The first field that takes raw bytes, if the class has one."""
    for name, info in cls.model_fields.items():
        if info.annotation is bytes or bytes in getattr(info.annotation, "__args__", ()):
            return name
    return None


def _multipart(body: bytes, content_type: str, raw: str | None) -> dict[str, object]:
    values: dict[str, object] = {}

    def on_field(field: object) -> None:
        name = (getattr(field, "field_name", None) or b"").decode("utf8", "replace")
        text = (getattr(field, "value", None) or b"").decode("utf8", "replace")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text

    def on_file(file: object) -> None:
        name = (getattr(file, "field_name", None) or b"").decode("utf8", "replace")
        stream = getattr(file, "file_object")  # noqa: B009 -- the parser's classes carry no types
        stream.seek(0)
        # `curl -F file=@x.jpg` is what people type; the only bytes field takes it whatever its name.
        values[name if name == raw or not raw else raw] = stream.read()

    try:
        parse_form({"Content-Type": content_type.encode()}, io.BytesIO(body), on_field, on_file)
    except Exception as fault:
        raise BadInput("body", f"is not a valid multipart form ({fault})", f"不是有效的 multipart 表单（{fault}）") from None
    return values


def validate(cls: type[R], values: Mapping[str, object]) -> R:
    """Validate Python values against ``cls``.

    Raises:
        BadInput: names the field.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as fault:
        raise problem(fault) from None


def problem(fault: ValidationError, sample: str = "{}") -> ScenariumError:
    """The first fault of a request as an error that names the field."""
    first = fault.errors(include_url=False)[0]
    why = reason(first)
    if first["type"] == "json_invalid":
        return ScenariumError("SCN-4002", reason=why, sample=sample)
    field = ".".join(str(part) for part in first["loc"]) or "body"
    known = {"missing": ("is missing", "缺失"), "extra_forbidden": ("is unknown", "不存在")}
    return BadInput(field, *known.get(first["type"], (f"cannot be used: {why.en}", f"的值无效：{why.zh}")))
