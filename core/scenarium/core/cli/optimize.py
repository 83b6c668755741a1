"""``scenarium optimize``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from scenarium.core.cli import base

if TYPE_CHECKING:
    from scenarium.core.optimising import Found, Tried


@base.command(
    "optimize",
    en="Make the production version faster: try ONNX Runtime and OpenVINO in fp32, bf16 and int8 (calibrated on its training data), measure each on its "
    "held-out rows, and register the fastest that loses at most --max-drop as a version, with the alias candidate.",
    zh="加速生产版本：尝试 ONNX Runtime 与 OpenVINO 的 fp32、bf16 和 int8（用其训练数据校准），在留出数据上逐一评估，"
    "把损失不超过 --max-drop 的最快者登记为新版本，别名为 candidate。",
    examples=(
        "scenarium optimize image_classification",
        "scenarium optimize fraud_text --max-drop 0.005 --promote",
        "scenarium optimize fraud_text --engine openvino --precision int8 --json",
    ),
)
@base.scenario_argument()
@base.option(
    "--max-drop",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    en="Largest share of the primary metric that may be lost.",
    zh="主要指标允许损失的最大比例。",
)
@base.option("--engine", metavar="ENGINE", en="Try this engine alone: onnx or openvino.", zh="只尝试此引擎：onnx 或 openvino。")
@base.option("--precision", metavar="PRECISION", en="Try this precision alone: fp32, bf16 or int8.", zh="只尝试此精度：fp32、bf16 或 int8。")
@base.option("--promote", "wanted", is_flag=True, en="Make it production too, by the rules of 'promote'.", zh="同时按 'promote' 的规则设为生产版本。")
@base.json_option
def optimize(name: str, max_drop: float, engine: str | None, precision: str | None, wanted: bool, as_json: bool) -> None:
    """Try, register, and say what came of it."""
    scenario = base.registry().scenario(name)
    from scenarium.core import compare, optimising
    from scenarium.core.progress_view import view
    from scenarium.core.store import Store

    store, progress = Store(scenario.settings.store_url), view(as_json=as_json)
    found = optimising.optimise(scenario, store, max_drop=max_drop, engine=engine, precision=precision, progress=progress)
    if not as_json:
        _print(found, max_drop)
    if wanted and found.version:
        compare.promote(scenario, store, found.version.number, progress=progress)
    if as_json:
        base.print_json(_plain(name, found, max_drop, promoted=wanted and found.version is not None))
    elif found.version:
        number = found.version.number
        if wanted:
            click.secho(base.say(f"{name}: production is version {number}", f"{name}：production 现为版本 {number}"), fg="green")
        else:
            click.secho(base.say(f"{name}: candidate is version {number}", f"{name}：candidate 现为版本 {number}"), fg="green")
            click.echo(base.say(f"Next: scenarium promote {name} {number}", f"下一步：scenarium promote {name} {number}"))


def _print(found: Found, max_drop: float) -> None:
    assert found.original.evaluation
    metric = found.source.manifest.metric.name
    heads = [
        base.say(*head)
        for head in (
            ("ENGINE", "引擎"),
            ("PRECISION", "精度"),
            ("SIZE", "大小"),
            ("LATENCY", "延迟"),
            ("THROUGHPUT", "吞吐量"),
            (metric, metric),
            ("CHANGE [95 %]", "变化［95 %］"),
        )
    ]
    value = f"{found.original.evaluation.metrics[metric]:.4f}"
    rows = [[*_pace(found.original), value, base.say(f"version {found.source.number}", f"版本 {found.source.number}")]]
    for each in found.tried:
        if each.comparison is None:
            assert each.reason
            rows.append([*each.way, "-", "-", "-", "-", base.say(*each.reason)])
            continue
        spread = f" [{each.comparison.interval[0]:+.4f}, {each.comparison.interval[1]:+.4f}]" if each.comparison.interval else ""
        mark = base.say(" kept", " 保留") if each is found.kept else base.say(" loses too much", " 损失过大") if not each.within(max_drop) else ""
        rows.append([*_pace(each), f"{each.comparison.new_value:.4f}", f"{each.comparison.difference:+.4f}{spread}{mark}"])
    base.print_table(heads, rows)
    click.echo(
        base.say(
            f"Threads: {found.threads}, as many as serving deals to a worker (serve.threads sets another number).",
            f"线程数：{found.threads}，与提供服务时分给一个 worker 的线程数相同（可用 serve.threads 另行设置）。",
        )
    )
    if found.kept is None:
        click.echo(base.say("Nothing is faster than the version as it is served within the allowed loss.", "在允许的损失范围内，没有比当前版本更快的方式。"))


def _pace(each: Tried) -> list[Any]:
    assert each.speed
    return [*each.way, f"{each.size / 1e6:.1f} MB", f"{each.speed.latency_ms:.2f} ms", f"{each.speed.per_second:.1f}/s ({each.speed.batch})"]


def _plain(name: str, found: Found, max_drop: float, promoted: bool) -> dict[str, Any]:
    metric = found.source.manifest.metric.name

    def row(each: Tried) -> dict[str, Any]:
        plain: dict[str, Any] = {"engine": each.way.engine, "precision": each.way.precision}
        if each.reason:
            return plain | {"left_out": base.say(*each.reason)}
        assert each.speed
        assert each.evaluation
        plain |= {"size_bytes": each.size, "latency_ms": each.speed.latency_ms, "per_second": each.speed.per_second, "batch": each.speed.batch}
        plain[metric] = each.evaluation.metrics[metric]
        if each.comparison:
            plain |= {"difference": each.comparison.difference, "interval": each.comparison.interval, "relative_loss": each.loss, "kept": each is found.kept}
        return plain

    return {
        "scenario": name,
        "source": found.source.number,
        "metric": metric,
        "max_drop": max_drop,
        "threads": found.threads,
        "original": row(found.original),
        "tried": [row(each) for each in found.tried],
        "version": found.version.number if found.version else None,
        "promoted": promoted,
    }
