"""``scenarium versions``, ``promote``, ``rollback``, ``export`` and ``prune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scenarium.core.cli import base
from scenarium.core.errors import ScenariumError

alias_option = base.option("--alias", default="production", show_default=True, en="The alias to set.", zh="要设置的别名。")


def _store() -> Any:
    from scenarium.core.store import Store

    return Store(base.registry().settings.store_url)


@base.command(
    "versions",
    en="List the stored versions of a scenario, the newest last, with their quality and aliases.",
    zh="列出场景已保存的版本（最新的在最后）及其质量和别名。",
    examples=("scenarium versions fraud_text", "scenarium versions fraud_text --history", "scenarium versions fraud_text --json"),
)
@base.scenario_argument()
@base.option("--history", is_flag=True, en="Who set which alias, when and why.", zh="显示别名的变更历史：谁、何时、为何。")
@base.json_option
def versions(name: str, history: bool, as_json: bool) -> None:
    """Read the manifests alone; a scenario whose plugin is gone still has its versions."""
    store = _store()
    numbers, record = store.versions(name), store.aliases(name)
    if not numbers:
        base.registry().plugin(name)  # a misspelt name is told apart from one without versions
        raise ScenariumError("SCN-4004", name=name)
    manifests = {number: store.manifest(name, number) for number in numbers}
    named = {number: [alias for alias, other in record["aliases"].items() if other == number] for number in numbers}
    if as_json:
        kept = {"version", "created", "metrics", "data_origin", "exports", "plugin", "tags"}
        rows = [{**m.model_dump(mode="json", include=kept), "metric": m.metric.name, "aliases": named[n]} for n, m in manifests.items()]
        base.print_json({"scenario": name, "versions": rows, "history": record["history"]})
        return
    if history:
        for entry in record["history"]:
            mark = base.say(" [forced]", "［强制］") if entry["forced"] else ""
            change = f"{entry['from'] or '-'} -> {entry['to'] or '-'}"
            click.echo(f"{entry['at'][:19]}  {entry['alias']}: {change}  {entry['action']}{mark}  {entry['by']}  {entry['reason']}")
        return
    metric = manifests[numbers[-1]].metric.name
    heads = [
        base.say(*head)
        for head in (
            ("VERSION", "版本"),
            ("ALIASES", "别名"),
            ("CREATED", "创建时间"),
            (metric, metric),
            ("DATA", "数据"),
            ("EXPORTS", "导出"),
            ("PLUGIN", "插件"),
        )
    ]
    cells: list[list[Any]] = []
    for number, m in manifests.items():
        value = m.metrics.get(m.metric.name)
        made = f"{m.created:%Y-%m-%d %H:%M}"
        aliases = ", ".join(named[number]) or "-"
        cells.append(
            [number, aliases, made, "-" if value is None else f"{value:.4f}", m.data_origin, ", ".join(m.exports) or "-", f"{m.plugin.name} {m.plugin.version}"]
        )
    base.print_table(heads, cells)


@base.command(
    "promote",
    en="Make a version production (default: the newest). It is compared with the production version on the same held-out rows and refused if it is "
    "worse: a paired bootstrap of the primary metric leaves no room for it being better. Gateways on the store change over within 5 s.",
    zh="将版本（默认最新）设为生产版本。先在相同的留出数据上与当前生产版本比较；若更差（主要指标的成对自助法区间不含改进的可能）则拒绝。"
    "使用该存储的网关会在 5 秒内切换。",
    examples=(
        "scenarium promote fraud_text",
        "scenarium promote fraud_text 4 --alias candidate",
        "scenarium promote fraud_text 4 --force --reason 'new fraud wave'",
    ),
)
@base.scenario_argument()
@click.argument("ref", metavar="[VERSION]", default="latest")
@alias_option
@base.option("--force", is_flag=True, en="Do it without the comparison; needs --reason.", zh="不比较直接执行；需要 --reason。")
@base.option("--reason", en="Why it is forced; kept with your user name.", zh="强制执行的原因；与您的用户名一同记录。")
@base.json_option
def promote(name: str, ref: str, alias: str, force: bool, reason: str | None, as_json: bool) -> None:
    """Compare, then point the alias at the version."""
    if force and not (reason and reason.strip()):
        raise click.UsageError(base.say("--force needs --reason '…'", "--force 需要 --reason '…'"))
    if alias == "latest" or alias.isdigit():
        raise click.UsageError(base.say(f"{alias!r} cannot be an alias", f"{alias!r} 不能用作别名"))
    scenario = base.registry().scenario(name)
    from scenarium.core import compare
    from scenarium.core.progress_view import view

    store = _store()
    number = store.resolve(name, ref)
    comparison = compare.promote(scenario, store, number, alias=alias, force=reason if force else None, progress=view(as_json=as_json))
    if as_json:
        found = {"scenario": name, "alias": alias, "version": number, "forced": force, "comparison": None}
        if comparison:
            found["comparison"] = {
                key: getattr(comparison, key) for key in ("old", "new", "rows", "old_value", "new_value", "difference", "interval", "resamples")
            }
        base.print_json(found)
    else:
        if comparison:
            click.echo(comparison.text())
        click.secho(base.say(f"{name}: {alias} is version {number}", f"{name}：{alias} 现为版本 {number}"), fg="green")
    base.change_over(name)


@base.command(
    "rollback",
    en="Return to the production version before, at once and without a comparison.",
    zh="立即回退到上一个生产版本，不做比较。",
    examples=("scenarium rollback fraud_text", "scenarium rollback fraud_text 2 --reason 'complaints'"),
)
@base.scenario_argument()
@click.argument("number", metavar="[VERSION]", type=int, required=False)
@alias_option
@base.option("--reason", default="rollback", en="Kept in the history.", zh="记录在历史中。")
@base.json_option
def rollback(name: str, number: int | None, alias: str, reason: str, as_json: bool) -> None:
    """Set the alias back."""
    from scenarium.core import compare

    before, after = compare.rollback(_store(), name, number, alias=alias, reason=reason)
    if as_json:
        base.print_json({"scenario": name, "alias": alias, "from": before, "version": after})
    else:
        click.secho(base.say(f"{name}: {alias} is version {after} (was {before})", f"{name}：{alias} 现为版本 {after}（原为 {before}）"), fg="green")
    base.change_over(name)


@base.command(
    "prune",
    en="Delete old versions. Kept are the last N, every aliased version, and the one to which a rollback would return.",
    zh="删除旧版本。保留最近 N 个、所有有别名的版本，以及回退时会用到的版本。",
    examples=("scenarium prune fraud_text --keep 5 --dry-run", "scenarium prune fraud_text --keep 5"),
)
@base.scenario_argument()
@base.option("--keep", type=click.IntRange(1), default=5, show_default=True, en="How many of the newest to keep.", zh="保留最新版本的数量。")
@base.option("--dry-run", is_flag=True, en="Only say what would be deleted.", zh="只显示将要删除的版本。")
@base.json_option
def prune(name: str, keep: int, dry_run: bool, as_json: bool) -> None:
    """Delete what nothing refers to."""
    store = _store()
    numbers = store.prunable(name, keep)
    if not dry_run:
        store.delete(name, numbers)
    if as_json:
        base.print_json({"scenario": name, "deleted": numbers, "dry_run": dry_run})
        return
    listed = ", ".join(map(str, numbers)) or base.say("none", "无")
    click.echo(base.say(f"would delete: {listed}", f"将删除：{listed}") if dry_run else base.say(f"deleted: {listed}", f"已删除：{listed}"))


@base.command(
    "export",
    en="Copy a version as an entry of a Triton model repository: config.pbtxt and the checked ONNX export, or TorchScript that is traced and checked now.",
    zh="将一个版本复制为 Triton 模型仓库的条目：config.pbtxt 与已校验的 ONNX 导出，或当场追踪并校验的 TorchScript。",
    examples=("scenarium export fraud_text --out ./model_repository", "scenarium export fraud_text --format torchscript --out ./model_repository"),
)
@base.scenario_argument()
@base.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", en="The repository.", zh="模型仓库的目录。")
@base.option("--version", "ref", default="production", metavar="REF", en="A number, an alias or latest.", zh="版本号、别名或 latest。")
@base.option("--format", "form", type=click.Choice(["onnx", "torchscript"]), default="onnx", show_default=True, en="The model's file.", zh="模型文件的格式。")
def export(name: str, out: Path, ref: str, form: str) -> None:
    """Copy, and say what was measured when it was exported."""
    from scenarium.core import triton_repository

    folder, told = triton_repository.export(_store(), name, ref, out, base.registry().scenario(name) if form == "torchscript" else None)
    click.echo(folder)
    if told:
        base.note(told, told)
