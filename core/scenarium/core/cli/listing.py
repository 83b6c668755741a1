"""``scenarium list`` and ``scenarium show``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scenarium.core.cli import base
from scenarium.core.errors import ScenariumError, language

if TYPE_CHECKING:
    from scenarium.core.manifest import Manifest
    from scenarium.core.probe import Health
    from scenarium.core.registry import Registry

STATES = {"ok": ("ready", "可用"), "broken": ("broken", "损坏"), "unknown": ("not probed yet", "尚未检查")}


@base.command(
    "list",
    en="List the installed scenarios: plugin, health as last probed, and the production version. Imports no plugin; --probe does, each in a "
    "process of its own.",
    zh="列出已安装的场景：插件、上次检查的状态和生产版本。不导入任何插件；--probe 会在独立进程中逐一导入检查。",
    examples=("scenarium list", "scenarium list --probe", "scenarium list --json"),
)
@base.option("--probe", "do_probe", is_flag=True, en="Import every plugin that changed since it was last probed.", zh="导入检查自上次以来有变化的插件。")
@base.json_option
def list_command(do_probe: bool, as_json: bool) -> None:
    """One row a scenario; a broken plugin is a row with its reason and remedy below."""
    from scenarium.core import probe

    registry = base.registry()
    plugins = list(registry.plugins.values())
    health = probe.probe(plugins) if do_probe else {plugin.name: probe.known(plugin) for plugin in plugins}
    rows = [_row(registry, name, plugin, health) for name, plugin in registry.names().items()]
    if as_json:
        lang = language()
        base.print_json([{**row, "error": row["error"].problem(lang) if row["error"] else None} for row in rows])
        return
    if not rows:
        click.echo(base.say("No scenario is installed. Run: pip install scenarium-<name>", "没有安装任何场景。请运行：pip install scenarium-<名称>"))
        return
    heads = (("SCENARIO", "场景"), ("DISTRIBUTION", "发行包"), ("STATE", "状态"), ("PRODUCTION", "生产版本"))
    cells = [(row["name"], f"{row['distribution']} {row['version']}".strip(), base.say(*STATES[row["state"]]), row["production"] or "-") for row in rows]
    base.print_table([base.say(*head) for head in heads], cells)
    for row in rows:
        if row["error"]:
            click.echo(err=True)
            base.print_error(row["error"])


def _row(registry: Registry, name: str, plugin_name: str, health: dict[str, Health]) -> dict[str, Any]:
    plugin = registry.plugins.get(plugin_name)
    row: dict[str, Any] = {"name": name, "plugin": plugin_name, "distribution": "", "version": "", "state": "broken", "production": None, "error": None}
    try:
        registry.plugin(name)
    except ScenariumError as fault:
        return {**row, "error": fault}
    if plugin is not None:
        row |= {"distribution": plugin.distribution, "version": plugin.version}
        row |= {"state": health[plugin_name].state, "error": health[plugin_name].error, "production": _production(registry, name)}
    return row


def _production(registry: Registry, name: str) -> int | None:
    """The production version, read straight from a local store: opening fsspec would take longer than the whole listing."""
    try:
        record = json.loads((Path(registry.settings.store_url) / "scenarios" / name / "aliases.json").read_text(encoding="utf8"))
        number: int | None = record["aliases"].get("production")
    except (OSError, ValueError, KeyError):
        return None
    return number


@base.command(
    "show",
    en="Show one scenario: plugin, versions, quality, and the request and answer of its production version (else of the plugin).",
    zh="查看一个场景：插件、版本、质量，以及生产版本（否则为插件）的请求与回答。",
    examples=("scenarium show fraud_text", "scenarium show fraud_text --card", "scenarium show fraud_text --json"),
)
@base.scenario_argument()
@base.option("--card", is_flag=True, en="Print the model card.", zh="输出模型卡。")
@base.json_option
def show(name: str, card: bool, as_json: bool) -> None:
    """Describe it."""
    found = described(base.registry(), name)
    if card:
        cards = found["card"]
        click.echo(cards.get(language()) or cards.get("en") or base.say("This plugin has no model card.", "该插件没有模型卡。"))
    elif as_json:
        base.print_json(found)
    else:
        _print_scenario(found)


def described(registry: Registry, name: str) -> dict[str, Any]:
    """What is known of a scenario: from its production version, else its newest, so that nothing is imported; else from its plugin.

    Raises:
        ScenariumError: SCN-1001 (no such scenario), or what is wrong with the plugin or the version.
    """
    from scenarium.core.store import Store

    store = Store(registry.settings.store_url)
    plugin = registry.plugin(name)
    numbers, aliases = store.versions(name), store.aliases(name)["aliases"]
    shown = aliases.get("production") or (numbers[-1] if numbers else None)
    found: dict[str, Any] = {
        "name": name,
        "plugin": plugin.name,
        "distribution": f"{plugin.distribution} {plugin.version}",
        "versions": numbers,
        "aliases": aliases,
    }
    return found | (_of_manifest(store.manifest(name, shown)) if shown else _of_plugin(registry, name))


def _of_manifest(manifest: Manifest) -> dict[str, Any]:
    kept = {"metrics", "baseline", "data_origin", "pure", "streams", "sample", "answer", "request_schema", "response_schema", "card"}
    return {"shown": manifest.version, "metric": manifest.metric.name, **manifest.model_dump(mode="json", include=kept)}


def _of_plugin(registry: Registry, name: str) -> dict[str, Any]:
    from scenarium.core.pipeline import cards

    scenario = registry.scenario(name)
    hook, config = scenario.hook, scenario.config
    schema, traits = hook.schema(config=config), hook.traits(config=config)
    return {
        "shown": None,
        "metric": hook.metric(config=config).name,
        "pure": traits.pure,
        "streams": traits.streams,
        "sample": hook.sample(config=config).model_dump(mode="json", exclude_unset=True),
        "request_schema": schema.request.model_json_schema(),
        "response_schema": schema.response.model_json_schema(mode="serialization"),
        "card": cards(scenario),
    }


def _print_scenario(found: dict[str, Any]) -> None:
    def line(en: str, zh: str, value: Any) -> None:
        click.echo(f"{click.style(base.say(en, zh), bold=True)}: {value}")

    line("scenario", "场景", f"{found['name']}  ({found['distribution']})")
    named = {number: alias for alias, number in found["aliases"].items()}
    listed = ", ".join(f"{number} ({named[number]})" if number in named else str(number) for number in found["versions"])
    line("versions", "版本", listed or base.say(f"none yet: scenarium train {found['name']}", f"暂无：scenarium train {found['name']}"))
    if found["shown"]:
        line("held-out quality", "留出数据上的质量", "  ".join(f"{key} {value:.4f}" for key, value in found["metrics"].items()))
        if found["baseline"]:
            name, metrics = found["baseline"]
            line(f"baseline {name}", f"基线 {name}", "  ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
        line("data origin", "数据来源", found["data_origin"])
    line("primary metric", "主要指标", found["metric"])
    line("streams", "流式输出", base.say("yes", "是") if found["streams"] else base.say("no", "否"))
    for title, key in ((("request", "请求"), "request_schema"), (("answer", "回答"), "response_schema")):
        line(*title, "")
        schema = found[key]
        for field, info in schema.get("properties", {}).items():
            kind = info.get("type") or info.get("$ref", "").rpartition("/")[2] or " | ".join(o.get("type", "…") for o in info.get("anyOf", ())) or "…"
            mark = "" if field in schema.get("required", ()) else base.say(" (optional)", "（可选）")
            click.echo(f"  {field}: {kind}{mark}  {' '.join(info.get('description', '').split())}".rstrip())
    line("sample", "示例", json.dumps(found["sample"], ensure_ascii=False)[:300])
    if found.get("answer"):
        line("its answer", "示例的回答", json.dumps(found["answer"], ensure_ascii=False)[:300])
