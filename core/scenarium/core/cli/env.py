"""``scenarium env``: make and list the interpreters that some scenarios need beside the main one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scenarium.core.cli import base
from scenarium.core.errors import ScenariumError


@base.group("env", en="Make and list the environments that some scenarios need.", zh="创建和列出部分场景所需的独立环境。")
def env() -> None:
    """Group of the commands below."""


@base.command(
    "create",
    group=env,
    en="Make the environment of a scenario from its lock file. Goes on where an earlier run stopped; does nothing where it is complete.",
    zh="按锁定文件创建场景的独立环境。可从上次中断处继续；已完成则直接返回。",
    examples=("scenarium env create chatbot", "scenarium env create chatbot --python 3.11"),
)
@base.scenario_argument()
@base.option("--python", metavar="X.Y", en="Use this Python version, not the preferred one.", zh="使用指定的 Python 版本。")
def create(name: str, python: str | None) -> None:
    """Make one environment."""
    from scenarium.core import environments
    from scenarium.core.progress_view import view

    environment = base.registry().scenario(name).hook.environment()
    if environment is None:
        raise ScenariumError("SCN-6011", name=name)
    place = environments.create(environment, view(), python=python)
    click.echo(place.folder)


@base.command("list", group=env, en="List the environments and whether they are made.", zh="列出各环境及其是否已创建。", examples=("scenarium env list",))
@base.json_option
def list_command(as_json: bool) -> None:
    """List what the installed scenarios declare."""
    from scenarium.core import environments

    registry = base.registry()
    rows: list[dict[str, Any]] = []
    for name in registry.names():
        try:
            environment = registry.scenario(name).hook.environment()
        except ScenariumError as fault:
            base.note(f"{name}: {fault.title('en')}", f"{name}：{fault.title('zh')}")
            continue
        for place in environments.places(environment) if environment else ():
            rows.append({"scenario": name, "python": place.version, "made": place.complete, "folder": str(place.folder)})
    if as_json:
        base.print_json(rows)
        return
    headers = [base.say(en, zh) for en, zh in (("scenario", "场景"), ("python", "python"), ("made", "已创建"), ("folder", "目录"))]
    yes, no = base.say("yes", "是"), base.say("no", "否")
    base.print_table(headers, [(row["scenario"], row["python"], yes if row["made"] else no, Path(row["folder"])) for row in rows])
