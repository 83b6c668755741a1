"""Checks of the distribution that carries a plugin. They need its source folder."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from scenarium.core.errors import ScenariumError
from scenarium.core.hookspecs import HOOK_API
from scenarium.core.kit.checks import NotApplicable, check
from scenarium.core.kit.subject import Subject
from scenarium.core.registry import HOOK_API_GROUP, PLUGINS


def _project(s: Subject) -> tuple[Path, dict[str, Any]]:
    if s.project is None:
        raise NotApplicable("no source folder: a single file, or an installed wheel", "没有源码目录：单个文件，或已安装的 wheel")
    return s.project, tomllib.loads((s.project / "pyproject.toml").read_text(encoding="utf8")).get("project", {})


@check("bronze", "package", "入口点存在且名称一致，钩子 API 版本匹配")
def entry_points(s: Subject) -> None:
    """The entry points name the plugin and a hook API that this core has"""
    folder, table = _project(s)
    groups = table.get("entry-points", {})
    if s.scenario.plugin.name not in groups.get(PLUGINS, {}):
        raise ScenariumError("SCN-7201", file=folder / "pyproject.toml", group=PLUGINS, name=s.scenario.plugin.name)
    api = str(groups.get(HOOK_API_GROUP, {}).get(s.scenario.plugin.name, ""))
    if not re.fullmatch(r"\d+\.\d+", api):
        raise ScenariumError("SCN-7201", file=folder / "pyproject.toml", group=HOOK_API_GROUP, name=s.scenario.plugin.name)
    major, minor = map(int, api.split("."))
    if major != HOOK_API[0] or minor > HOOK_API[1]:
        raise ScenariumError("SCN-7202", file=folder / "pyproject.toml", api=api, ours=".".join(map(str, HOOK_API)))


@check("bronze", "package", "声明了许可证、Python 版本和有范围的依赖")
def metadata(s: Subject) -> None:
    """pyproject.toml states licence, Python version, and ranges of the requirements"""
    folder, table = _project(s)
    for key in ("license", "requires-python", "description"):
        if not table.get(key):
            raise ScenariumError("SCN-7203", file=folder / "pyproject.toml", key=f"project.{key}")
    for requirement in table.get("dependencies", []):
        if not re.search(r"[<>=~]", requirement.partition(";")[0]):
            raise ScenariumError("SCN-7204", file=folder / "pyproject.toml", requirement=requirement)


@check("bronze", "package", "README 说明请求、应答、数据与许可证")
def readme(s: Subject) -> None:
    """The README shows request, answer, data and licence"""
    folder, _ = _project(s)
    file = folder / "README.md"
    if not file.is_file():
        raise ScenariumError("SCN-7205", file=file)
    words = file.read_text(encoding="utf8").lower()
    # One word of each group; the groups are what a reader looks for first.
    groups = (("request", "请求"), ("answer", "response", "应答"), ("data", "数据"), ("licen", "许可"))
    missing = [group[0] for group in groups if not any(word in words for word in group)]
    if missing:
        raise ScenariumError("SCN-7206", file=file, missing=", ".join(missing))


@check("bronze", "package", "有中英文模型卡和 py.typed")
def cards(s: Subject) -> None:
    """Model cards in English and Chinese and a py.typed lie beside the module"""
    _project(s)
    for name in ("card.en.md", "card.zh.md", "py.typed"):
        if s.home is None or not (s.home / name).is_file():
            raise ScenariumError("SCN-7205", file=(s.home or Path()) / name)
        if name.endswith(".md") and len((s.home / name).read_text(encoding="utf8").strip()) < 80:
            raise ScenariumError("SCN-7207", file=s.home / name)
