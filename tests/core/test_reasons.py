"""Whatever a settings or request class refuses, it says why in the reader's language."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import BaseModel, ByteSize, Field, TypeAdapter, ValidationError, field_validator
from pydantic_core.core_schema import ErrorType

from scenarium.core.bodies import decode
from scenarium.core.config import CoreConfig, GatewayConfig, Settings
from scenarium.core.errors import BadValue, ScenariumError
from scenarium.core.reasons import CHINESE, reason
from scenarium.core.registry import Registry
from scenarium.core.schemas import Request

RAISES = {
    "model": {"model_type"},
    "model-fields": {"missing", "extra_forbidden", "model_attributes_type"},
    "int": {"int_type", "int_parsing", "int_parsing_size", "int_from_float"},
    "float": {"float_type", "float_parsing", "finite_number"},
    "str": {"string_type", "string_unicode"},
    "bytes": {"bytes_type", "bytes_invalid_encoding"},
    "bool": {"bool_type", "bool_parsing"},
    "literal": {"literal_error"},
    "enum": {"enum"},
    "list": {"list_type"},
    "tuple": {"tuple_type"},
    "dict": {"dict_type", "invalid_key"},
    "none": {"none_required"},
    # These raise what is inside them, or what our own validators raise, which is no type of pydantic's.
    **{kind: set() for kind in ("model-field", "default", "nullable", "union", "definitions", "definition-ref", "function-before", "function-after", "any")},
}
"""Kind of a node of pydantic's core schema to the error types that it raises by itself (its page "Validation Errors")."""
LIMITS = {"gt": "greater_than", "ge": "greater_than_equal", "lt": "less_than", "le": "less_than_equal", "multiple_of": "multiple_of"}
LENGTHS = {"list": "too_", "tuple": "too_", "dict": "too_", "str": "string_too_", "bytes": "bytes_too_"}


def raised(node: Any) -> Iterator[str]:
    """Every error type that a core schema can raise."""
    if isinstance(node, list | tuple):
        for inner in node:
            yield from raised(inner)
    if not isinstance(node, dict):
        return
    kind = node.get("type")
    if isinstance(kind, str) and "function" not in node.get("function", {}):
        assert kind in RAISES, f"a new kind of schema: {kind}"
        yield from RAISES[kind]
    yield from (LIMITS[name] for name in LIMITS if name in node)
    yield from (LENGTHS[str(kind)] + word for key, word in (("min_length", "short"), ("max_length", "long")) if key in node)
    yield from ["string_pattern_mismatch"] if "pattern" in node else []
    yield from [node["custom_error_type"]] if "custom_error_type" in node else []
    for key, inner in node.items():
        if key not in ("metadata", "serialization", "function", "default", "config"):
            yield from raised(inner)


def classes() -> dict[str, type[BaseModel]]:
    """The settings and the request of every installed scenario, and the settings of the gateway and of Scenarium."""
    registry = Registry(Settings.read(environ={}))
    found: dict[str, type[BaseModel]] = {"gateway": GatewayConfig, "scenarium": CoreConfig}
    for name in registry.names():
        scenario = registry.scenario(name)
        found[f"{name} settings"] = type(scenario.config)
        found[f"{name} request"] = scenario.hook.schema(config=scenario.config).request
    return found


def test_every_reason_that_a_class_can_give_is_in_the_table() -> None:
    found = classes()
    assert {"gateway", "scenarium"} < set(found)
    lacking = {f"{name}: {kind}" for name, cls in found.items() for kind in raised(cls.__pydantic_core_schema__) if kind not in CHINESE}
    assert lacking == set()


def test_the_table_names_error_types_of_pydantic() -> None:
    assert set(CHINESE) - {"byte_size", "byte_size_unit"} <= set(get_args(ErrorType))


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


PET = Annotated[Cat | Dog, Field(discriminator="kind")]


@pytest.mark.parametrize(
    ("annotation", "value", "kind", "chinese"),
    [
        (Annotated[int, Field(gt=0)], 0, "greater_than", "应大于 0"),
        (Annotated[float, Field(ge=0.5)], 0, "greater_than_equal", "应大于或等于 0.5"),
        (Annotated[int, Field(lt=3)], 3, "less_than", "应小于 3"),
        (Annotated[int, Field(le=3)], 4, "less_than_equal", "应小于或等于 3"),
        (Annotated[int, Field(multiple_of=32)], 33, "multiple_of", "应为 32 的倍数"),
        (Annotated[float, Field(allow_inf_nan=False)], float("nan"), "finite_number", "应为有限的数"),
        (Annotated[list[int], Field(min_length=2)], [1], "too_short", "至少应有 2 项，实际为 1 项"),
        (Annotated[list[int], Field(max_length=1)], [1, 2], "too_long", "至多应有 1 项，实际为 2 项"),
        (Annotated[str, Field(min_length=2)], "a", "string_too_short", "至少应有 2 个字符"),
        (Annotated[str, Field(max_length=1)], "ab", "string_too_long", "至多应有 1 个字符"),
        (Annotated[str, Field(pattern="^a$")], "b", "string_pattern_mismatch", "应匹配正则表达式 ^a$"),
        (Annotated[bytes, Field(min_length=2)], b"a", "bytes_too_short", "至少应有 2 个字节"),
        (Annotated[bytes, Field(max_length=1)], b"ab", "bytes_too_long", "至多应有 1 个字节"),
        (Literal["a", "b", "c"], "d", "literal_error", "应为下列之一：'a', 'b' 或 'c'"),
        (Colour, "green", "enum", "应为下列之一：'red' 或 'blue'"),
        (int, "many", "int_parsing", "应为整数，无法将该字符串读作整数"),
        (int, 1.5, "int_from_float", "应为整数，该数带有小数部分"),
        (int, "9" * 5000, "int_parsing_size", "整数过大"),
        (float, "much", "float_parsing", "应为数字，无法将该字符串读作数字"),
        (bool, "maybe", "bool_parsing", "应为布尔值，无法识别该值"),
        (ByteSize, "lots", "byte_size", "无法将该值读作字节数"),
        (ByteSize, "3 parsecs", "byte_size_unit", "无法识别字节单位：parsecs"),
        (None, 1, "none_required", "应为空值（null）"),
        (PET, {"kind": "cow"}, "union_tag_invalid", "标签 cow 应为下列之一：'cat', 'dog'"),
        (PET, {}, "union_tag_not_found", "缺少用于区分类型的字段 'kind'"),
        *((annotation, object(), kind, CHINESE[kind]) for annotation, kind in ((str, "string_type"), (bytes, "bytes_type"), (bool, "bool_type"))),
        *((annotation, object(), kind, CHINESE[kind]) for annotation, kind in ((int, "int_type"), (float, "float_type"), (list[int], "list_type"))),
        *((annotation, object(), kind, CHINESE[kind]) for annotation, kind in ((tuple[int], "tuple_type"), (dict[str, int], "dict_type"), (Cat, "model_type"))),
    ],
)
def test_reasons_in_chinese(annotation: Any, value: Any, kind: str, chinese: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(annotation).validate_python(value)
    error = caught.value.errors(include_url=False)[0]
    assert error["type"] == kind
    assert reason(dict(error)) == (error["msg"], chinese)


def test_a_type_that_the_table_has_not_keeps_pydantics_words() -> None:
    error = {"type": "url_scheme", "loc": ("a",), "msg": "URL scheme should be 'http'", "ctx": {"expected_schemes": "'http'"}}
    assert reason(error) == ("URL scheme should be 'http'", "URL scheme should be 'http'")


class Order(Request):
    number: str
    count: int = Field(1, ge=1)

    @field_validator("number")
    @classmethod
    def _digits(cls, value: str) -> str:
        if not value.isdigit():
            raise BadValue("must have digits alone", "只能由数字组成")
        return value


@pytest.mark.parametrize(
    ("body", "code", "english", "chinese"),
    [
        ({"number": "A1"}, "SCN-4001", "must have digits alone", "只能由数字组成"),
        ({"number": "1", "count": 0}, "SCN-4001", "Input should be greater than or equal to 1", "应大于或等于 1"),
        ({}, "SCN-4001", "is missing", "缺失"),
        ("{", "SCN-4002", "EOF while parsing", "不是有效的 JSON"),
    ],
)
def test_a_request_is_refused_in_both_languages(body: Any, code: str, english: str, chinese: str) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    with pytest.raises(ScenariumError) as caught:
        decode(text.encode(), "application/json", Order)
    assert caught.value.code == code
    assert english in caught.value.title("en")
    assert chinese in caught.value.title("zh")
    assert "Value error" not in caught.value.title("en")


def test_a_setting_is_refused_in_both_languages() -> None:
    settings = Settings.read(environ={}, sets=["gateway.port=99999", "gateway.host=3"])
    with pytest.raises(ScenariumError) as caught:
        settings.validate(GatewayConfig, ("gateway",), "gateway")
    assert "应小于 65536" in caught.value.title("zh")
    assert "应为字符串" in caught.value.title("zh")
    assert "Input should be less than 65536" in caught.value.title("en")
