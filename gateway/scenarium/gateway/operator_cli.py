"""``scenarium status``, ``logs`` and ``reload``: looking after a gateway that runs."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from scenarium.core.cli import base
from scenarium.core.errors import ScenariumError, Words, language

if TYPE_CHECKING:
    from scenarium.core.config import GatewayConfig

PERIOD_S = 1.0
COLUMNS = (
    ("scenario", "场景"),
    ("state", "状态"),
    ("version", "版本"),
    ("workers", "worker"),
    ("device", "设备"),
    ("threads", "线程"),
    ("MB", "MB"),
    ("queue", "队列"),
    ("open", "进行中"),
    ("req/s", "请求/秒"),
    ("p50 ms", "p50 ms"),
    ("p99 ms", "p99 ms"),
    ("errors", "错误"),
    ("last fault", "最近故障"),
)
KEY_FROM = (" The key of an administrator is taken from SCENARIUM_KEY.", " 管理密钥取自环境变量 SCENARIUM_KEY。")
url_option = base.option(
    "--url", envvar="SCENARIUM_URL", en="The gateway (default: [gateway] host and port).", zh="网关地址（默认取 [gateway] 的 host 和 port）。"
)


def address(config: GatewayConfig) -> str:
    """Where this machine reaches a gateway with these settings."""
    host = "127.0.0.1" if config.host in ("0.0.0.0", "") else "::1" if config.host == "::" else config.host
    return f"http://{f'[{host}]' if ':' in host else host}:{config.port}"


def ask(url: str | None, path: str, method: str = "GET") -> Any:
    """What a gateway's administration answers. The key stands in ``SCENARIUM_KEY``.

    Raises:
        ScenariumError: SCN-1010 (nobody answers), SCN-1011 (it refuses, with its own words).
    """
    if url is None:
        from scenarium.core.config import GatewayConfig

        url = address(base.registry().settings.validate(GatewayConfig, ("gateway",), "gateway"))
    headers = {"Content-Type": "application/json", "Accept-Language": language()}
    if key := os.environ.get("SCENARIUM_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url.rstrip("/") + path, b"{}" if method == "POST" else None, headers, method=method)
    try:
        # Without the environment's proxies: this is a machine of one's own.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as fault:
        with fault:
            told = _problem(fault.read())
        place = ":".join(str(told[part]) for part in ("file", "line") if part in told)
        title, remedy = str(told.get("title", fault.reason)), str(told.get("hint", ""))
        english, chinese = KEY_FROM if fault.code in (401, 403) else ("", "")
        raise ScenariumError("SCN-1011", url=url, reason=f"{place}: {title}" if place else title, remedy=Words(remedy + english, remedy + chinese)) from None
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "reason", fault)
        raise ScenariumError("SCN-1010", url=url, reason=Words(str(reason), str(reason))) from None


def _problem(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@base.command(
    "reload",
    en="Let a running gateway read scenarios.toml and the installed plugins again. No accepted request is lost; wrong settings change nothing.",
    zh="让运行中的网关重新读取 scenarios.toml 和已安装的插件。已接受的请求不会丢失；设置有误时不做任何改变。",
    examples=("scenarium reload", "scenarium reload --url http://localhost:9000"),
)
@url_option
@base.json_option
def reload(url: str | None, as_json: bool) -> None:
    """Ask, and say what changed."""
    told = ask(url, "/admin/reload", "POST")
    if as_json:
        base.print_json(told)
        return
    words = {
        "added": ("added", "新增"),
        "removed": ("removed", "移除"),
        "changed": ("changed", "已更改"),
        "restarted": ("new workers", "更换 worker"),
        "refused": ("refused (see 'scenarium status')", "被拒绝（见 'scenarium status'）"),
    }
    lines = [f"{base.say(*words[word])}: {', '.join(names)}" for word, names in told.items() if names]
    click.echo("\n".join(lines) or base.say("Nothing changed.", "没有变化。"))


@base.command(
    "logs",
    en="What a scenario's workers printed lately: a plugin's own output and its tracebacks.",
    zh="查看某场景的 worker 最近的输出：插件自身的输出和报错信息。",
    examples=("scenarium logs fraud_text", "scenarium logs fraud_text -f"),
)
@base.scenario_argument()
@base.option("-f", "--follow", is_flag=True, en="Go on until Ctrl-C.", zh="持续输出，直到 Ctrl-C。")
@url_option
@base.json_option
def logs(name: str, follow: bool, url: str | None, as_json: bool) -> None:
    """Print, and go on where asked."""
    last = 0
    while True:
        for line in ask(url, f"/admin/logs/{name}?after={last}")["lines"]:
            last = line["number"]
            click.echo(json.dumps(line, ensure_ascii=False) if as_json else f"{line['at'][11:23]} {line['pid']:>7}  {line['line']}")
        if not follow:
            return
        time.sleep(PERIOD_S)


@base.command(
    "status",
    en="A running gateway: scenarios, versions, workers, device, threads, memory, queue, requests a second, latency, errors, last fault.",
    zh="查看运行中的网关：场景、版本、worker、设备、线程、内存、队列、每秒请求数、延迟、错误和最近的故障。",
    examples=("scenarium status", "scenarium status --watch", "SCENARIUM_KEY=sk-scn-… scenarium status --url http://host:8080 --json"),
)
@base.option("--watch", is_flag=True, en="Show it anew every second until Ctrl-C.", zh="每秒刷新，直到 Ctrl-C。")
@url_option
@base.json_option
def status(watch: bool, url: str | None, as_json: bool) -> None:
    """Take two looks a second apart, since rates are differences."""
    before = ask(url, "/admin/status")
    while True:
        time.sleep(PERIOD_S)
        now = ask(url, "/admin/status")
        if watch and not as_json:
            click.clear()
        show(before, now, as_json)
        if not watch:
            return
        before = now


def show(before: Mapping[str, Any], now: Mapping[str, Any], as_json: bool) -> None:
    """Print one table, or one JSON document."""
    seconds = max(0.001, now["gateway"]["clock_s"] - before["gateway"]["clock_s"])
    earlier = {each["name"]: each for each in before["scenarios"]}
    rows = [row(earlier.get(each["name"], each), each, seconds, now["latency_bounds_s"]) for each in now["scenarios"]]
    if as_json:
        base.print_json({"gateway": now["gateway"], "scenarios": [each | figures for each, figures in zip(now["scenarios"], rows, strict=True)]})
        return
    gateway = now["gateway"]
    total = sum(worker["memory_mb"] or 0 for each in now["scenarios"] for worker in each["workers"]) + (gateway["memory_mb"] or 0)
    of = "" if gateway["memory_budget_mb"] is None else f" / {gateway['memory_budget_mb']:.0f}"
    head = f"pid {gateway['pid']} · {gateway['uptime_s']} s · {total:.0f}{of} MB"
    click.echo(base.say(f"gateway {head}", f"网关 {head}"))
    for name, each in gateway["devices"].items():
        click.echo(f"{name} · {each['used_mb']} / {each['budget_mb']} MB")
    table = [cells(each, figures) for each, figures in zip(now["scenarios"], rows, strict=True)]
    base.print_table([base.say(*pair) for pair in COLUMNS], table)


def cells(each: Mapping[str, Any], figures: Mapping[str, Any]) -> list[Any]:
    """One scenario's row of the table."""
    workers = each["workers"]
    ready = sum(worker["ready"] for worker in workers)
    device, threads = (",".join(sorted({str(worker[what]) for worker in workers})) or "-" for what in ("device", "threads"))
    fault = (each["last_fault"] or {}).get("error") or each["error"] or {}
    about = [each["name"], each["state"], each["version"] or "-", f"{ready}/{len(workers)}", device, threads, f"{figures['memory_mb']:.0f}"]
    latency = [_ms(figures["p50_s"]), _ms(figures["p99_s"])]
    return [*about, each["queue"], each["open"], f"{figures['requests_per_s']:.1f}", *latency, figures["errors"], fault.get("title", "")]


def row(before: Mapping[str, Any], now: Mapping[str, Any], seconds: float, bounds: Sequence[float]) -> dict[str, Any]:
    """The figures of one scenario between two looks; where nothing came between them, latency is that since the gateway's start."""
    done = sum(now["outcomes"].values()) - sum(before["outcomes"].values())
    counts = [after - earlier for after, earlier in zip(now["latency_counts"], before["latency_counts"], strict=True)]
    shown = counts if sum(counts) > 0 else now["latency_counts"]
    return {
        "requests_per_s": round(max(0, done) / seconds, 2),
        "p50_s": quantile(shown, bounds, 0.5),
        "p99_s": quantile(shown, bounds, 0.99),
        "errors": sum(count for outcome, count in now["outcomes"].items() if outcome not in ("ok", "client_error", "cancelled")),
        "memory_mb": round(sum(worker["memory_mb"] or 0 for worker in now["workers"]), 1),
    }


def quantile(counts: Sequence[int], bounds: Sequence[float], q: float) -> float | None:
    """A quantile (seconds) of a histogram, linear within its bucket, as Prometheus' ``histogram_quantile`` has it. None: no values."""
    total, below, lower = sum(counts), 0, 0.0
    if total <= 0:
        return None
    for count, upper in zip(counts, bounds, strict=False):
        if below + count >= q * total and count:
            return lower + (upper - lower) * (q * total - below) / count
        below, lower = below + count, upper
    return bounds[-1]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.2g}" if seconds < 0.01 else f"{seconds * 1000:.0f}"
