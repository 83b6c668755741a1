"""``scenarium doctor``."""

from __future__ import annotations

import click

from scenarium.core.cli import base
from scenarium.core.errors import language

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


@base.command(
    "doctor",
    en="Examine the installation: Python, packages, torch, GPU, disk, store, package index, settings, plugins, environments.\n\n"
    "Exit code 0: nothing will fail; 3: something will.",
    zh="检查安装：Python、软件包、torch、GPU、磁盘、存储、软件源、设置、插件与独立环境。\n\n退出码 0：一切正常；3：存在问题。",
    examples=("scenarium doctor", "scenarium doctor --json > doctor.json"),
)
@base.json_option
def doctor(as_json: bool) -> int:
    """Print each check as it ends."""
    from scenarium.core.doctor import examine

    lang = language()
    found = []
    for check in examine(base.registry()):
        found.append(check)
        if not as_json:
            mark, colour = MARKS[check.status]
            click.echo(f"{click.style(mark, fg=colour, bold=True)} {check.name:<12} {getattr(check.found, lang)}")
            if remedy := getattr(check.remedy, lang):
                click.secho(f"    {remedy}", fg="yellow")
    problems = sum(check.status == "problem" for check in found)
    if as_json:
        base.print_json({"problems": problems, "checks": [check.json(lang) for check in found]})
    else:
        click.echo(base.say(f"{problems} problems", f"{problems} 个问题") if problems else base.say("No problem found.", "没有发现问题。"))
    return base.EXIT_FOUND if problems else 0
