"""Bad request bodies made from a scenario's sample."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel

JSON = "application/json"
HUGE = 200_000


class Bad(NamedTuple):
    """One body that a careless or hostile client sends."""

    what: str
    what_zh: str
    body: bytes
    content_type: str = JSON
    field: str | None = None
    """The field that the error must name."""
    must_fail: bool = False
    """Whether a good answer would be wrong."""


def bad_bodies(sample: BaseModel) -> Iterator[Bad]:
    """Missing and unknown fields, wrong types, empty, huge and non-finite values, wrong bytes, and bodies that are no JSON object."""
    good: dict[str, Any] = sample.model_dump(mode="json", exclude_unset=True)
    yield Bad("no JSON", "不是 JSON", b"{not json", must_fail=not _takes_bytes(sample))
    yield Bad("an array", "数组", b"[1, 2]", must_fail=True)
    yield Bad("a null", "null", b"null", must_fail=True)
    yield Bad("an empty body", "空请求体", b"", must_fail=True)
    yield Bad("bytes that are no UTF-8", "不是 UTF-8 的字节", b'{"a": "\xff\xfe"}', must_fail=True)
    yield Bad("deeply nested JSON", "嵌套过深的 JSON", b"[" * 5000, must_fail=True)
    yield Bad("an unknown field", "未知字段", _json({**good, "no_such_field": 1}), field="no_such_field", must_fail=True)
    for name, info in type(sample).model_fields.items():
        if info.is_required():
            yield Bad(f"no field {name!r}", f"缺少字段 {name!r}", _json({k: v for k, v in good.items() if k != name}), field=name, must_fail=True)
        yield Bad(f"an object in the place of {name!r}", f"字段 {name!r} 是对象", _json({**good, name: {"no_such_field": []}}), field=name)
        yield Bad(f"null in the place of {name!r}", f"字段 {name!r} 为 null", _json({**good, name: None}))
        for what, what_zh, value in _values(info.annotation, good.get(name)):
            yield Bad(f"{what} in {name!r}", f"字段 {name!r}：{what_zh}", _json({**good, name: value}))


def _values(annotation: Any, given: Any) -> Iterator[tuple[str, str, Any]]:
    """Values of the right JSON type that hurt."""
    if annotation is bytes or bytes in getattr(annotation, "__args__", ()):
        for what, what_zh, content in (
            ("no bytes", "空字节", b""),
            ("wrong bytes", "错误的字节", b"\x89PNG\r\n\x1a\nnot an image"),
            ("noise", "噪声", bytes(range(256)) * 8),
        ):
            yield what, what_zh, base64.b64encode(content).decode()
        yield "no base64", "不是 base64", "%%%"
    elif isinstance(given, str):
        texts = {
            "": ("an empty text", "空文本"),
            " \n\t": ("blanks", "空白"),
            "\x00\u202e\ud83d\ude00é": ("odd characters", "特殊字符"),
            "好" * HUGE: ("a huge text", "超长文本"),
        }
        for value, (what, what_zh) in texts.items():
            yield what, what_zh, value
    elif isinstance(given, bool):
        yield "a text", "文本", "perhaps"
    elif isinstance(given, (int, float)):
        for number in (0, -1, 1e308, -1e308, float("nan"), float("inf")):
            yield f"the number {number}", f"数字 {number}", number
    elif isinstance(given, list):
        yield "an empty list", "空列表", []
        yield "one element", "单个元素", given[:1]
        yield "a long list", "超长列表", (given * (20_000 // max(len(given), 1) + 1))[:20_000]
        if given and isinstance(given[0], (int, float)) and not isinstance(given[0], bool):
            for number in (float("nan"), 1e308):
                yield f"a list with {number}", f"含 {number} 的列表", [number, *given[1:]]


def _json(value: dict[str, Any]) -> bytes:
    # Python's encoder writes NaN and Infinity, as careless clients do.
    return json.dumps(value, ensure_ascii=False).encode("utf8", "surrogatepass")


def _takes_bytes(sample: BaseModel) -> bool:
    return any(info.annotation is bytes for info in type(sample).model_fields.values())
