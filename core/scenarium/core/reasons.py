"""Why a settings or request class refuses a value, in both languages: pydantic says it in English only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scenarium.core.errors import BadValue, Words

CHINESE = {
    "missing": "缺少该字段",
    "extra_forbidden": "没有该字段",
    "none_required": "应为空值（null）",
    "greater_than": "应大于 {gt}",
    "greater_than_equal": "应大于或等于 {ge}",
    "less_than": "应小于 {lt}",
    "less_than_equal": "应小于或等于 {le}",
    "multiple_of": "应为 {multiple_of} 的倍数",
    "finite_number": "应为有限的数",
    "too_short": "至少应有 {min_length} 项，实际为 {actual_length} 项",
    "too_long": "至多应有 {max_length} 项，实际为 {actual_length} 项",
    "string_type": "应为字符串",
    "string_unicode": "应为有效的 Unicode 字符串",
    "string_too_short": "至少应有 {min_length} 个字符",
    "string_too_long": "至多应有 {max_length} 个字符",
    "string_pattern_mismatch": "应匹配正则表达式 {pattern}",
    "bytes_type": "应为字节串",
    "bytes_too_short": "至少应有 {min_length} 个字节",
    "bytes_too_long": "至多应有 {max_length} 个字节",
    "bytes_invalid_encoding": "应为有效的 {encoding} 编码：{encoding_error}",
    "bool_type": "应为布尔值（true 或 false）",
    "bool_parsing": "应为布尔值，无法识别该值",
    "int_type": "应为整数",
    "int_parsing": "应为整数，无法将该字符串读作整数",
    "int_parsing_size": "整数过大",
    "int_from_float": "应为整数，该数带有小数部分",
    "float_type": "应为数字",
    "float_parsing": "应为数字，无法将该字符串读作数字",
    "literal_error": "应为下列之一：{expected}",
    "enum": "应为下列之一：{expected}",
    "list_type": "应为列表",
    "tuple_type": "应为列表",
    "dict_type": "应为键值表",
    "model_type": "应为键值表",
    "model_attributes_type": "应为键值表",
    "byte_size": "无法将该值读作字节数",
    "byte_size_unit": "无法识别字节单位：{unit}",
    "invalid_key": "键应为字符串",
    "json_invalid": "不是有效的 JSON：{error}",
    "json_type": "JSON 应以字符串或字节给出",
    "union_tag_invalid": "标签 {tag} 应为下列之一：{expected_tags}",
    "union_tag_not_found": "缺少用于区分类型的字段 {discriminator}",
    "recursion_loop": "嵌套过深或循环引用",
    "recursion_depth_exceeded": "嵌套过深或循环引用",
}
"""Type of a pydantic error to its Chinese text, a template over the error's context. The types: pydantic's page "Validation Errors"."""


def reason(error: Mapping[str, Any]) -> Words:
    """One entry of ``ValidationError.errors()``, with its context, as text; of a type that the table has not, pydantic's English stands in both."""
    context = error.get("ctx", {})
    fault = context.get("error")
    if isinstance(fault, BadValue):
        return fault.words
    english = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    template = CHINESE.get(error["type"])
    chinese = template.format_map(context) if template else english
    return Words(english, chinese.replace(" or ", " 或 ") if error["type"] in ("literal_error", "enum") else chinese)
