"""``scenarium config explain``."""

from __future__ import annotations

import json
from typing import Any

import click

from scenarium.core.cli import base


@base.group("config", en="Explain settings.", zh="说明设置。")
def config() -> None:
    """Group of the command below."""


@base.command(
    "explain",
    group=config,
    en="Show every setting of a scenario (or of the tables 'gateway' and 'scenarium'): value, where it came from, what it does.\n\n"
    "Later wins: default < scenarios.toml < SCENARIUM_… variables < --set.",
    zh="显示场景（或表 gateway、scenarium）的每个设置：值、来源和说明。\n\n优先级从低到高：默认值 < scenarios.toml < SCENARIUM_… 环境变量 < --set。",
    examples=("scenarium config explain fraud_text", "scenarium config explain fraud_text --changed", "scenarium config explain gateway --json"),
)
@click.argument("name", metavar="NAME", shell_complete=base.complete_scenario)
@base.option("--changed", is_flag=True, en="Only settings that differ from their default's place.", zh="只显示不是默认来源的设置。")
@base.set_option
@base.json_option
def explain_command(name: str, changed: bool, sets: tuple[str, ...], as_json: bool) -> None:
    """Print the settings with their documentation."""
    from scenarium.core.config import SHARED, explain

    if name in SHARED:
        found = explain(base.registry(sets).settings, SHARED[name], name, (name,))
    else:
        scenario = base.registry(sets, name).scenario(name)
        found = explain(scenario.settings, scenario.hook.config(), name)
    rows: list[dict[str, Any]] = [
        {"setting": key, "value": value, "origin": origin.kind, "where": str(origin), "doc": " ".join(doc.split())}
        for key, value, origin, doc in found
        if not changed or origin.kind != "default"
    ]
    if as_json:
        base.print_json(rows)
        return
    for row in rows:
        value = json.dumps(row["value"], ensure_ascii=False, default=str)
        origin = base.say("default", "默认值") if row["origin"] == "default" else click.style(row["where"], fg="cyan")
        click.echo(f"{click.style(row['setting'], bold=True)} = {value}  ← {origin}")
        if row["doc"]:
            click.secho(f"    {row['doc']}", dim=True)
