"""``scenarium train`` and ``scenarium evaluate``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from scenarium.core.cli import base

if TYPE_CHECKING:
    from scenarium.core.manifest import Manifest
    from scenarium.core.pipeline import Trained
    from scenarium.core.registry import Scenario

DATA_OPTIONS = (
    base.option(
        "--data",
        metavar="FILE",
        en="Your own data: a file, a folder, any fsspec URL, hf://… or ms://…",
        zh="您自己的数据：文件、目录、fsspec URL、hf://… 或 ms://…",
    ),
    base.option(
        "--map", "maps", metavar="FIELD=COLUMN", multiple=True, en="Which column holds a field: --map text=content.", zh="字段对应的列：--map text=内容。"
    ),
    base.option(
        "--map-label",
        "labels",
        metavar="YOURS=OURS",
        multiple=True,
        en="A label of your file under the scenario's name: --map-label spam=fraud.",
        zh="文件中的标签对应场景的标签：--map-label 诈骗=fraud。",
    ),
    base.option("--split", metavar="HOW", en="random, time:COLUMN or group:COLUMN.", zh="random、time:列 或 group:列。"),
)


def data_options(function: Any) -> Any:
    """The options that say which data, shared by ``train``, ``evaluate`` and ``data check``."""
    for decorate in reversed(DATA_OPTIONS):
        function = decorate(function)
    return function


def data_sets(data: str | None, maps: Sequence[str], labels: Sequence[str], split: str | None) -> list[str]:
    """The data options as settings of this run. A relative path is one from the current folder, wherever the settings file lies."""
    sets = []
    if data is not None:
        sets.append(f"data.path={json.dumps(data if '://' in data else os.path.abspath(os.path.expanduser(data)))}")
    for key, pairs in (("map", maps), ("map_label", labels)):
        if pairs:
            sets.append(f"data.{key}={json.dumps(_pairs(pairs), ensure_ascii=False)}")
    if split is not None:
        sets.append(f"data.split={json.dumps(split)}")
    return sets


def _pairs(pairs: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        left, equals, right = pair.partition("=")
        if not equals or not left or not right:
            raise click.UsageError(base.say(f"{pair!r} is not of the form NAME=VALUE", f"{pair!r} 不是 名称=值 的形式"))
        found[left] = right
    return found


@base.command(
    "train",
    en="Train a scenario and store a version. The first version that reaches its floor becomes production by itself.\n\n"
    "An interrupted run is continued with --resume, to the same result as if it had never stopped.",
    zh="训练场景并保存版本。第一个达到最低要求的版本自动成为生产版本。\n\n中断的训练可用 --resume 继续，结果与未中断时相同。",
    examples=(
        "scenarium train fraud_text",
        "scenarium train fraud_text --data my.csv --map text=content --map label=class --map-label spam=fraud",
        "scenarium train image_classification --data photos/ --set train.epochs=5 --nproc 2",
        "scenarium train fraud_text --resume --json > result.json",
    ),
)
@base.scenario_argument()
@data_options
@base.set_option
@base.option("--nproc", type=click.IntRange(1), en="Processes on this machine (train.nproc).", zh="本机进程数（train.nproc）。")
@base.option("--resume", is_flag=True, en="Continue the interrupted run of the same settings and data.", zh="继续相同设置和数据的中断训练。")
@base.json_option
def train(
    name: str,
    data: str | None,
    maps: tuple[str, ...],
    labels: tuple[str, ...],
    split: str | None,
    sets: tuple[str, ...],
    nproc: int | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Say what will be used, train, and say what came of it."""
    given = [*sets, *data_sets(data, maps, labels, split), *([f"train.nproc={nproc}"] if nproc else [])]
    scenario = base.registry(given, name).scenario(name)
    from scenarium.core import pipeline
    from scenarium.core.progress_view import view
    from scenarium.core.store import Store

    say_data(scenario)
    settings = scenario.settings
    trained = pipeline.train(scenario, Store(settings.store_url), settings.home / "runs", resume=resume, progress=view(as_json=as_json))
    if as_json:
        base.print_json(_result(trained))
    else:
        _print_trained(scenario, trained)


def say_data(scenario: Scenario) -> None:
    """Which data will be used, where it comes from, and under which licence; on stderr."""
    config = scenario.config
    if config.data.path is not None:
        base.note(f"data: {config.data.path} (your own)", f"数据：{config.data.path}（您自己的数据）")
        return
    for source in scenario.hook.sources(config=config):
        used = source.free or source.name in config.data.accept_licence
        skipped = "" if used else base.say(" – not used, its licence needs consent: --set", "——未使用，其许可证需要同意：--set")
        accept = "" if used else f" data.accept_licence='[\"{source.name}\"]'"
        click.secho(f"{base.say('data', '数据')}: {source.name} ({source.origin}, {source.licence}){skipped}{accept}", err=True, dim=not used)


def _result(trained: Trained) -> dict[str, Any]:
    manifest = trained.version.manifest
    kept = {"scenario", "version", "metrics", "baseline", "data_origin", "exports"}
    return {
        **manifest.model_dump(mode="json", include=kept),
        "metric": manifest.metric.name,
        "production": trained.became_production,
        "seconds": round(trained.seconds, 2),
        "folder": str(trained.version.folder),
    }


def _print_trained(scenario: Scenario, trained: Trained) -> None:
    manifest, name = trained.version.manifest, scenario.name
    number = trained.version.number
    click.secho(base.say(f"{name}: version {number} in {trained.seconds:.1f} s", f"{name}：版本 {number}，用时 {trained.seconds:.1f} 秒"), bold=True)
    print_quality(manifest.metrics, manifest)
    click.echo(f"{base.say('data origin', '数据来源')}: {manifest.data_origin}")
    report = trained.version.folder / "report.html"
    if report.is_file():
        click.echo(f"{base.say('report', '报告')}: {report}")
    if trained.became_production:
        text = json.dumps(manifest.sample, ensure_ascii=False)
        # A sample that is too long for a line is shown by ``show``.
        step = f"predict {name} '{text}'" if len(text) <= 300 and "'" not in text else f"show {name}"
        click.echo(base.say("It is production now. Next:", "它现在是生产版本。下一步："))
        click.echo(f"  scenarium {step}\n  scenarium serve")
        return
    from scenarium.core.compare import floor, reaches_floor

    least = floor(manifest)
    if least and not reaches_floor(manifest):
        en = f"It is below its floor ({least[0].en}: {manifest.metric.name} {least[1]:.4f}) and serves nothing."
        click.secho(base.say(en, f"它低于最低要求（{least[0].zh}：{manifest.metric.name} {least[1]:.4f}），不会用于服务。"), fg="yellow")
    click.echo(f"{base.say('Next', '下一步')}:\n  scenarium promote {name} {number}")


def print_quality(metrics: Mapping[str, float], manifest: Manifest) -> None:
    """The metrics beside the baseline's, the primary one first."""
    baseline = manifest.baseline
    heads = [base.say("held-out metric", "留出数据指标"), base.say("this version", "此版本"), *([baseline.name] if baseline else [])]
    names = sorted(metrics, key=lambda key: (key != manifest.metric.name, key))
    rows = []
    for key in names:
        row = [f"{key} *" if key == manifest.metric.name else key, f"{metrics[key]:.4f}"]
        if baseline:
            row.append(f"{baseline.metrics[key]:.4f}" if key in baseline.metrics else "-")
        rows.append(row)
    base.print_table(heads, rows)


@base.command(
    "evaluate",
    en="Measure a version: on the rows that it held out when it was trained, or on all rows of your own file.",
    zh="评估一个版本：使用训练时留出的数据，或您自己文件中的全部数据。",
    examples=(
        "scenarium evaluate fraud_text",
        "scenarium evaluate fraud_text --version 3 --data new.csv --map text=content --map label=class",
        "scenarium evaluate fraud_text --version latest --json",
    ),
)
@base.scenario_argument()
@base.version_option
@data_options
@base.set_option
@base.json_option
def evaluate(
    name: str, ref: str, data: str | None, maps: tuple[str, ...], labels: tuple[str, ...], split: str | None, sets: tuple[str, ...], as_json: bool
) -> None:
    """Evaluate by the serving path itself."""
    scenario = base.registry([*sets, *data_sets(data, maps, labels, split)], name).scenario(name)
    from scenarium.core.handle import Handle
    from scenarium.core.progress_view import view

    handle = Handle(scenario, ref)
    evaluation = handle.evaluate(own=data is not None, progress=view(as_json=as_json))
    manifest = handle.version.manifest
    if as_json:
        base.print_json({"scenario": name, "version": handle.version.number, "rows": len(evaluation.rows), "metrics": evaluation.metrics})
        return
    rows = len(evaluation.rows)
    click.secho(base.say(f"{name}: version {manifest.version} on {rows} rows", f"{name}：版本 {manifest.version}，{rows} 行"), bold=True)
    print_quality(evaluation.metrics, manifest if data is None else manifest.model_copy(update={"baseline": None}))
