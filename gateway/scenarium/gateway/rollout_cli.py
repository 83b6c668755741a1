"""``scenarium rollout start``, ``status`` and ``stop``: a new version tried beside production.

They write and read the store, which every gateway on it follows; ``status`` also asks a gateway for its figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from scenarium.core.cli import base
from scenarium.core.errors import ScenariumError, language
from scenarium.gateway.operator_cli import ask, url_option

if TYPE_CHECKING:
    from scenarium.core.rollouts import Rollout
    from scenarium.core.store import Store

STATES = {
    "running": ("running", "进行中"),
    "promoted": ("promoted", "已提升"),
    "stopped": ("stopped", "已停止"),
    "rolled_back": ("rolled back", "已回退"),
}


def share(text: str) -> float:
    """A share as a number from 0 to 1: ``5%`` or ``0.05``."""
    try:
        found = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise click.BadParameter(base.say(f"{text!r} is no share: write 5% or 0.05", f"{text!r} 不是比例：请写 5% 或 0.05"))
    return found


@base.group("rollout", en="Try a version beside production before it takes over.", zh="让新版本先与生产版本并行试用，再正式切换。")
def rollout() -> None:
    """A group of commands."""


def _store() -> Store:
    from scenarium.core.store import Store

    return Store(base.registry().settings.store_url)


@base.command(
    "start",
    group=rollout,
    en="Send a share of the requests to a version (--canary), or copies of those that production answered (--shadow), or both. It is taken back by itself "
    "where it is worse by more than the limits. For the version that is tried already: changes share, shadow and limits.",
    zh="把一部分请求交给某个版本（--canary），或把生产版本已回答的请求复制给它（--shadow），或两者兼用。若超出限度地变差，会自动回退。"
    "对正在试用的版本再次执行则更改比例、镜像和限度。",
    examples=(
        "scenarium rollout start fraud_text 4 --canary 5%",
        "scenarium rollout start fraud_text latest --shadow",
        "scenarium rollout start fraud_text 4 --canary 20% --max-latency-ratio 2",
    ),
)
@base.scenario_argument()
@click.argument("ref", metavar="VERSION")
@base.option("--canary", type=share, default="0", en="Share of the requests that it answers: 5%.", zh="由它回答的请求比例：5%。")
@base.option("--shadow", is_flag=True, en="Mirror requests to it and compare the answers.", zh="把请求镜像给它并比较回答。")
@base.option(
    "--min-requests", type=click.IntRange(1), default=50, show_default=True, en="Judge nothing before so many answers.", zh="回答达到此数之前不做判断。"
)
@base.option(
    "--max-error-rate",
    type=share,
    default="2%",
    show_default=True,
    en="How far its share of server errors may lie above production's.",
    zh="其服务器错误率最多可比生产版本高出多少。",
)
@base.option(
    "--max-latency-ratio",
    type=click.FloatRange(1.0),
    default=1.5,
    show_default=True,
    en="Its 95th percentile of latency over production's; canary alone.",
    zh="其第 95 百分位延迟与生产版本之比的上限；仅用于 canary。",
)
@base.option(
    "--max-disagreement",
    type=share,
    default="20%",
    show_default=True,
    en="Mean disagreement of mirrored answers, by the measure that the scenario names.",
    zh="镜像回答的平均分歧上限，按场景指定的度量计算。",
)
@base.json_option
def start(
    name: str,
    ref: str,
    canary: float,
    shadow: bool,
    min_requests: int,
    max_error_rate: float,
    max_latency_ratio: float,
    max_disagreement: float,
    as_json: bool,
) -> None:
    """Check the version, and write it into the store."""
    if not (canary or shadow):
        raise click.UsageError(base.say("needs --canary SHARE or --shadow", "需要 --canary 比例 或 --shadow"))
    from scenarium.core import acceptance, rollouts

    scenario, store = base.registry().scenario(name), _store()
    number = store.resolve(name, ref)
    acceptance.check_plugin(scenario, store.manifest(name, number))
    limits = rollouts.Limits(min_requests=min_requests, max_error_rate=max_error_rate, max_latency_ratio=max_latency_ratio, max_disagreement=max_disagreement)
    found = rollouts.start(store, name, number, canary, shadow, limits)
    if as_json:
        base.print_json({"scenario": name, **found.model_dump(mode="json")})
        return
    click.secho(
        base.say(
            f"{name}: version {number} is tried beside version {found.production} ({_what(found)}). See: scenarium rollout status {name}",
            f"{name}：版本 {number} 与版本 {found.production} 并行试用（{_what(found)}）。请查看：scenarium rollout status {name}",
        ),
        fg="green",
    )


@base.command(
    "stop",
    group=rollout,
    en="End a rollout. Production answers everything again; with --promote the version becomes production, unless it is worse on the held-out rows.",
    zh="结束灰度发布，全部请求重新由生产版本回答；加 --promote 则将该版本设为生产版本（在留出数据上更差则拒绝）。",
    examples=("scenarium rollout stop fraud_text", "scenarium rollout stop fraud_text --promote"),
)
@base.scenario_argument()
@base.option("--promote", is_flag=True, en="Make its version production.", zh="将该版本设为生产版本。")
@base.json_option
def stop(name: str, promote: bool, as_json: bool) -> None:
    """End it; whoever promotes ends it by that."""
    from scenarium.core import compare, rollouts
    from scenarium.core.progress_view import view

    store = _store()
    running = rollouts.standing(store, name).rollout
    if running is None or not running.running:
        raise ScenariumError("SCN-5015", name=name)
    comparison = None
    if promote:
        comparison = compare.promote(base.registry().scenario(name), store, running.version, progress=view(as_json=as_json))
    else:
        rollouts.stop(store, name)
    if as_json:
        base.print_json({"scenario": name, "version": running.version, "promoted": promote})
    else:
        if comparison:
            click.echo(comparison.text())
        english = f"{name}: production is version {running.version}" if promote else f"{name}: the rollout of version {running.version} is stopped"
        chinese = f"{name}：生产版本现为 {running.version}" if promote else f"{name}：版本 {running.version} 的灰度发布已停止"
        click.secho(base.say(english, chinese), fg="green")
    base.change_over(name)


@base.command(
    "status",
    group=rollout,
    en="The rollouts of all scenarios, or of one: what is tried, what a running gateway measured, and why the last one ended.",
    zh="查看所有或某个场景的灰度发布：正在试用的版本、运行中的网关测得的数据，以及上一次结束的原因。",
    examples=("scenarium rollout status", "scenarium rollout status fraud_text --json"),
)
@base.scenario_argument(required=False)
@url_option
@base.json_option
def status(name: str | None, url: str | None, as_json: bool) -> None:
    """Read the store, and a gateway where one answers."""
    from scenarium.core import rollouts

    store = _store()
    if name:
        base.registry().plugin(name)
    found = {each: rollout for each in ([name] if name else store.scenarios()) if (rollout := rollouts.standing(store, each).rollout)}
    live = _live(url) if any(each.running for each in found.values()) else {}
    rows = [{"scenario": each, **rollout.model_dump(mode="json"), "gateway": live.get(each)} for each, rollout in found.items()]
    if as_json:
        base.print_json({"rollouts": rows})
        return
    if not rows:
        click.echo(base.say("There was no rollout.", "没有灰度发布。"))
        return
    heads = (
        ("scenario", "场景"),
        ("version", "版本"),
        ("state", "状态"),
        ("what", "内容"),
        ("requests", "请求"),
        ("errors", "错误率"),
        ("p95 ms", "p95 ms"),
        ("disagreement", "分歧"),
    )
    base.print_table([base.say(*head) for head in (*heads, ("reason", "原因"))], [_cells(each, rollout, live.get(each)) for each, rollout in found.items()])


def _live(url: str | None) -> dict[str, Any]:
    """What a gateway measured, by scenario; nothing where none answers."""
    try:
        return {each["name"]: each["rollout"] for each in ask(url, "/admin/status")["scenarios"] if each.get("rollout")}
    except ScenariumError as fault:
        base.note(f"without a gateway's figures: {fault.title('en')}", f"没有网关的数据：{fault.title('zh')}")
        return {}


def _cells(name: str, rollout: Rollout, live: dict[str, Any] | None) -> list[Any]:
    figures = (live if rollout.running else rollout.figures) or {}
    arm = figures.get("canary" if rollout.canary else "shadow", {})
    shown = [arm.get(key) for key in ("requests", "error_rate", "p95_ms")] + [figures.get("disagreement")]
    cells = [name, f"{rollout.production} -> {rollout.version}", base.say(*STATES[rollout.state]), _what(rollout)]
    return [*cells, *("-" if value is None else value for value in shown), rollout.reason.get(language(), "")]


def _what(rollout: Rollout) -> str:
    parts = [f"canary {rollout.canary * 100:.4g}%"] if rollout.canary else []
    return ", ".join([*parts, *(["shadow"] if rollout.shadow else [])])
