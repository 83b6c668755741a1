"""``scenarium new``, ``check`` and ``dev``: for authors of plugins."""

from __future__ import annotations

from pathlib import Path

import click

from scenarium.core.cli import base


@base.command(
    "new",
    en="Write a plugin that installs, trains, serves and passes its checks; then make it yours.",
    zh="生成一个可安装、可训练、可服务并通过检查的插件，再改成您自己的。",
    examples=("scenarium new my_scenario", "scenarium new my_scenario --template table --into plugins"),
)
@click.argument("name", metavar="NAME")
@base.option("--template", default="text", metavar="KIND", en="text, image, table, series or no-torch.", zh="text、image、table、series 或 no-torch。")
@base.option(
    "--into",
    "parent",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    en="Where the plugin's folder is made (default: here).",
    zh="插件文件夹的位置（默认为当前文件夹）。",
)
def new(name: str, template: str, parent: Path | None) -> None:
    """Write a plugin."""
    from scenarium.core.kit.new import create

    folder = create(name, template, parent)
    click.echo(folder)
    place = folder if folder.is_absolute() else f"./{folder}"
    base.note(
        f"Next: pip install -e {place} && scenarium check {name} && scenarium train {name} && scenarium serve",
        f"下一步：pip install -e {place} && scenarium check {name} && scenarium train {name} && scenarium serve",
    )


@base.command(
    "check",
    en="Check a plugin: its hooks, data, training, answers and packaging. Takes a name, a folder or a single file.",
    zh="检查插件：钩子、数据、训练、应答和打包。参数可以是名称、文件夹或单个文件。",
    examples=("scenarium check fraud_text", "scenarium check plugins/my_scenario --tier gold", "scenarium check my.py --json", "scenarium check --list"),
)
@click.argument("target", metavar="NAME|PATH", required=False)
@base.option(
    "--tier",
    type=click.Choice(["bronze", "silver", "gold"]),
    en="The bar (default: the one that the plugin's pyproject.toml declares, else bronze).",
    zh="检查的等级（默认为插件 pyproject.toml 中声明的等级，否则为 bronze）。",
)
@base.set_option
@base.option("--trace", is_flag=True, en="Show the whole traceback of a fault.", zh="显示完整的调用栈。")
@base.option("--list", "listing", is_flag=True, en="List all checks.", zh="列出全部检查。")
@base.json_option
def check(target: str | None, tier: str | None, sets: tuple[str, ...], trace: bool, listing: bool, as_json: bool) -> int:
    """Run the conformance kit. Exit code 3 where a check failed."""
    from scenarium.core.kit import check as kit
    from scenarium.core.kit.checks import TIERS, all_checks

    if listing:
        kit.print_checks(all_checks())
        return 0
    if target is None:
        raise click.UsageError(base.say("give the name, folder or file of a plugin", "请给出插件的名称、文件夹或文件"))
    bar = next((known for known in TIERS if known == tier), None)
    report = kit.run_checks(target, tier=bar, sets=sets, seen=(lambda result: None) if as_json else lambda result: kit.print_result(result, trace))
    if as_json:
        base.print_json(report.json())
    else:
        passed, failed, blocked, skipped = (len(report.names(status)) for status in ("passed", "failed", "blocked", "skipped"))
        base.note(
            f"{report.name}, {report.tier}: {passed} passed, {failed} failed, {blocked} blocked, {skipped} not applicable",
            f"{report.name}，{report.tier}：通过 {passed}，失败 {failed}，受阻 {blocked}，不适用 {skipped}",
        )
    return 0 if report.passed else base.EXIT_FOUND
