"""From the bytes of a request body to the plugin's request class.

JSON, raw bytes and multipart uploads are told apart by the schema and the first bytes, so plain ``curl -d`` (which claims to be
a form) and ``curl --data-binary @photo.jpg`` both work.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from python_multipart.multipart import create_form_parser

from scenarium.core.errors import BadInput, ScenariumError
from scenarium.core.reasons import reason

R = TypeVar("R", bound=BaseModel)

MAX_PARTS = 1000
"""Most fields and files of a multipart form: each costs the parser 20 microseconds, whatever it holds."""
MAX_FAULTS = 10_000
"""Most faults of a request of which the first is looked for: pydantic makes objects of all, at 3 microseconds and 1 kB each."""
MAX_NAME = 100
"""Most characters of a client's own field name that an error repeats."""

logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # else each malformed form is a line of the worker's output


def decode(body: bytes, content_type: str, cls: type[R], sample: str = "{}") -> R:
    """Validate one body against ``cls``.

    Raises:
        ScenariumError: SCN-4001 (names the field), SCN-4002 (not JSON).
    """
    raw = bytes_field(cls)
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return validate(cls, _multipart(body, content_type, cls))
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


class _Form:
    """The values of a multipart form, as the parser's callbacks bring them."""

    def __init__(self, cls: type[BaseModel]) -> None:
        self.fields = cls.model_fields
        self.raw = bytes_field(cls)
        self.values: dict[str, object] = {}
        self.parts = 0

    def on_field(self, field: object) -> None:
        name = self._name(field)
        content = getattr(field, "value", None) or b""
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise BadInput(name or "body", "is not UTF-8 text", "不是 UTF-8 文本") from None
        self.values[name] = text
        # pydantic makes numbers and truth values of text by itself; lists and objects are JSON, but in a field of text.
        if text.lstrip()[:1] in ("[", "{") and name in self.fields and self.fields[name].annotation not in (str, str | None):
            try:
                self.values[name] = from_json(content, allow_inf_nan=False)
            except ValueError as fault:
                raise BadInput(name, f"is not valid JSON: {fault}", f"不是有效的 JSON：{fault}") from None

    def on_file(self, file: object) -> None:
        name = self._name(file)
        stream: io.BytesIO = getattr(file, "file_object")  # noqa: B009 -- the parser's classes carry no types
        # `curl -F file=@x.jpg` is what people type; the only bytes field takes it whatever its name.
        self.values[self.raw or name] = stream.getvalue()

    def _name(self, part: object) -> str:
        self.parts += 1
        if self.parts > MAX_PARTS:
            raise BadInput("body", f"has more than {MAX_PARTS} parts", f"的部分超过 {MAX_PARTS} 个")
        return str((getattr(part, "field_name", None) or b"").decode("utf8", "replace"))


def _multipart(body: bytes, content_type: str, cls: type[BaseModel]) -> dict[str, object]:
    form = _Form(cls)
    # The body is in memory already: no file is written for a part of it.
    options = {"MAX_MEMORY_FILE_SIZE": len(body) + 1, "UPLOAD_ERROR_ON_BAD_CTE": True}
    try:
        parser = create_form_parser({"Content-Type": content_type.encode()}, form.on_field, form.on_file, options)
        parser.write(body)
        parser.finalize()
    except ScenariumError:
        raise
    except Exception as fault:
        raise BadInput("body", f"is not a valid multipart form ({fault})", f"不是有效的 multipart 表单（{fault}）") from None
    return form.values


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
    """The first fault of a request as an error that names the field; of very many faults their number."""
    if fault.error_count() > MAX_FAULTS:
        count = fault.error_count()
        return BadInput("body", f"has {count} faults, the first of which is not looked for", f"有 {count} 处错误，不再逐一查找")
    first = fault.errors(include_url=False, include_input=False)[0]
    why = reason(first)
    if first["type"] == "json_invalid":
        return ScenariumError("SCN-4002", reason=why, sample=sample)
    field = ".".join(str(part)[:MAX_NAME] for part in first["loc"]) or "body"
    known = {"missing": ("is missing", "缺失"), "extra_forbidden": ("is unknown", "不存在")}
    return BadInput(field, *known.get(first["type"], (f"cannot be used: {why.en}", f"的值无效：{why.zh}")))
