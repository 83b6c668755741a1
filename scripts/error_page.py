"""Write docs/errors.md from the catalogue of messages; tests/house/test_docs.py compares the two."""

from __future__ import annotations

import re
from pathlib import Path

from scenarium.core.errors import catalogue

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
HEAD = """# Errors · 错误

Every error has one shape and a stable code. Over HTTP it is problem details (RFC 9457, `application/problem+json`) with the members `code`, `title`,
`status`, `hint` and, where they are known, `field`, `file` and `line`. The command line prints the same texts. `Accept-Language` and `SCENARIUM_LANG`
choose the language. Words in braces are filled in.

每个错误都有固定的形式与稳定的编号。通过 HTTP 返回 RFC 9457 问题详情（`application/problem+json`），成员为 `code`、`title`、`status`、`hint`，以及已知时的
`field`、`file`、`line`。命令行显示相同的文字。语言由 `Accept-Language` 与 `SCENARIUM_LANG` 决定。花括号内的词会被替换。

This page is written by `scripts/error_page.py`.
"""
GROUPS = {
    "0": "Plugins' own words · 插件自述",
    "1": "Plugins, scenarios and settings · 插件、场景与设置",
    "2": "Sources and data · 数据",
    "3": "Training · 训练",
    "4": "Requests and serving · 请求与服务",
    "5": "Versions and the store · 版本与存储",
    "6": "Engines and environments · 引擎与环境",
    "7": "Plugin kit · 插件工具",
}


def page() -> str:
    """The whole page."""
    parts, group = [HEAD], ""
    for code, message in sorted(catalogue().items()):
        thousand = re.sub(r"\D", "", code)[0]
        if thousand != group:
            group = thousand
            parts.append(f"\n## {GROUPS[group]}\n")
        en, zh, hint_en, hint_zh = (message[key].replace("\n", " ") for key in ("en", "zh", "hint_en", "hint_zh"))  # type: ignore[literal-required]  # the four text keys
        parts.append(f"### {code}\n\nHTTP {message['status']} · {en}\n{zh}\n\n- {hint_en}\n- {hint_zh}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf8")
