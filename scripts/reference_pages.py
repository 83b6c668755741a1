"""Write the pages that follow from the code: docs/errors.md, docs/settings.md, docs/commands.md. Tests compare them with the code."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from scenarium.core.cli.table import COMMANDS
from scenarium.core.config import DataConfig, GatewayConfig, Section, ServeConfig, TrainConfig
from scenarium.core.errors import catalogue

DOCS = Path(__file__).resolve().parent.parent / "docs"
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
WRITTEN = "\nThis page is written by `scripts/reference_pages.py`.\n"


def errors() -> str:
    """Every code with its texts in both languages."""
    parts = [
        "# Errors · 错误\n\n"
        "Every error has one shape and a stable code. Over HTTP it is problem details (RFC 9457, `application/problem+json`) with the members `code`, `title`,\n"
        "`status`, `hint` and, where they are known, `field`, `file` and `line`. The command line prints the same texts. `Accept-Language` and `SCENARIUM_LANG`\n"
        "choose the language. Words in braces are filled in.\n\n"
        "每个错误都有固定的形式与稳定的编号。通过 HTTP 返回 RFC 9457 问题详情，命令行显示相同的文字；语言由 `Accept-Language` 与 `SCENARIUM_LANG` 决定。花括号内的词会被替换。\n"
        + WRITTEN
    ]
    group = ""
    for code, message in sorted(catalogue().items()):
        thousand = re.sub(r"\D", "", code)[0]
        if thousand != group:
            group = thousand
            parts.append(f"## {GROUPS[group]}\n")
        en, zh, hint_en, hint_zh = (str(text).replace("\n", " ") for key, text in message.items() if key != "status")
        parts.append(f"### {code}\n\nHTTP {message['status']} · {en}\n{zh}\n\n- {hint_en}\n- {hint_zh}\n")
    return "\n".join(parts)


def settings() -> str:
    """Every shared setting with its type, default and meaning; plugins add their own under ``model``."""
    parts = [
        "# Settings · 设置\n\n"
        "The settings that every scenario has (`[scenarios.<name>.<section>]`) and the gateway's own. A plugin adds its own, mostly under `model`:\n"
        "`scenarium config explain NAME` shows all of a scenario with their values and where each came from. See [configuration](configuration.md).\n\n"
        "所有场景共有的设置以及网关的设置。插件会增加自己的设置，多在 `model` 一节；`scenarium config explain 名称` 会列出全部设置、取值与来源。\n" + WRITTEN
    ]
    for prefix, cls in {"data": DataConfig, "train": TrainConfig, "serve": ServeConfig, "gateway": GatewayConfig}.items():
        doc = (cls.__doc__ or "").strip().splitlines()[0]
        parts.append(f"## {prefix}\n\n{doc}\n\n| setting | default | meaning |\n|---|---|---|\n{''.join(_rows(prefix, cls))}")
    return "\n".join(parts)


def _rows(prefix: str, cls: type[Section]) -> Iterator[str]:
    for name, info in cls.model_fields.items():
        meaning = (info.description or "").replace("|", "\\|").replace("\n", " ")
        yield f"| `{prefix}.{name}` | `{info.get_default(call_default_factory=True)!r}` | {meaning} |\n"


def commands() -> str:
    """The help of every command and sub-command."""
    os.environ.update(SCENARIUM_LANG="en", COLUMNS="110")
    parts = [
        "# Commands · 命令\n\nThe `--help` of every command. `SCENARIUM_LANG=zh` shows it in Chinese. See [the command line](cli.md).\n\n"
        "全部命令的 `--help`。`SCENARIUM_LANG=zh` 显示中文。\n" + WRITTEN
    ]
    for name, entry in COMMANDS.items():
        module, _, attribute = entry.target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        parts += [f"## scenarium {name}\n\n{entry.zh}\n", *_help(command, f"scenarium {name}")]
    return "\n".join(parts)


def _help(command: click.Command, path: str) -> Iterator[str]:
    context = click.Context(command, info_name=path, terminal_width=110, max_content_width=110)
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield f"```text\n{text}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner: Any = command.get_command(context, name)
            yield from (f"### {path} {name}\n", *_help(inner, f"{path} {name}"))


PAGES: dict[str, Callable[[], str]] = {"errors.md": errors, "settings.md": settings, "commands.md": commands}


if __name__ == "__main__":
    for page, make in PAGES.items():
        (DOCS / page).write_text(make(), encoding="utf8")
