"""``scenarium data check`` and ``scenarium data verify``."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict

import click

from scenarium.core.cli import base
from scenarium.core.cli.train import data_options, data_sets
from scenarium.core.errors import language


@base.group("data", en="Look at data before a run; verify what a version was trained on.", zh="训练前检查数据；核对版本所用的数据。")
def data() -> None:
    """Group of the commands below."""


@base.command(
    "check",
    group=data,
    en="Show what a scenario makes of a file: rows, classes, duplicates, leakage, repairs. Trains nothing. Without FILE: of its default data.\n\n"
    "Exit code 0: a training would start; 3: it would not.",
    zh="显示场景对文件的解读：行数、类别、重复、泄漏、修复。不训练。省略 FILE 时检查默认数据。\n\n退出码 0：可以开始训练；3：不可以。",
    examples=("scenarium data check fraud_text my.csv --map text=content --map label=class", "scenarium data check fraud_text --json"),
)
@base.scenario_argument()
@click.argument("file", required=False)
@data_options
@base.set_option
@base.json_option
def check_command(
    name: str, file: str | None, data: str | None, maps: tuple[str, ...], labels: tuple[str, ...], split: str | None, sets: tuple[str, ...], as_json: bool
) -> int:
    """Read, map, clean and split, and report instead of raising."""
    if file is not None and data is not None:
        raise click.UsageError(base.say("give FILE or --data, not both", "FILE 与 --data 只能给出一个"))
    scenario = base.registry([*sets, *data_sets(file or data, maps, labels, split)], name).scenario(name)
    from scenarium.core.data_check import check

    report = check(scenario)
    if as_json:
        base.print_json(report.json())
    else:
        width = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 120
        click.echo(report.text(language(), width), nl=False)
        good, bad = base.say("A training would start.", "可以开始训练。"), base.say("A training would not start.", "无法开始训练。")
        click.secho(good if report.ok else bad, fg="green" if report.ok else "red", bold=True)
    return 0 if report.ok else base.EXIT_FOUND


@base.command(
    "verify",
    group=data,
    en="Compare the data that a version was trained on with what lies there now, file by file.\n\nExit code 0: all as it was; 3: something changed.",
    zh="逐个文件核对某版本训练所用的数据与现在的数据。\n\n退出码 0：没有变化；3：有变化。",
    examples=("scenarium data verify fraud_text", "scenarium data verify fraud_text --version 3 --json"),
)
@base.scenario_argument()
@base.version_option
@base.json_option
def verify_command(name: str, ref: str, as_json: bool) -> int:
    """Hash the files again, those unchanged by size and time excepted."""
    from scenarium.core import datasets
    from scenarium.core.store import Store

    store = Store(base.registry().settings.store_url)
    number = store.resolve(name, ref)
    manifest = store.manifest(name, number)
    found = datasets.verify(manifest.data)
    if as_json:
        base.print_json({"scenario": name, "version": number, "differences": [asdict(difference) for difference in found]})
    else:
        words = {"changed": ("changed", "已改动"), "missing": ("missing", "缺失"), "added": ("added", "新增")}
        for difference in found:
            click.secho(f"{base.say(*words[difference.kind])}: {difference.path}", fg="red")
        if not found:
            click.secho(base.say(f"The data of version {number} is as it was.", f"版本 {number} 的数据没有变化。"), fg="green")
    return base.EXIT_FOUND if found else 0
