"""``scenarium keys`` and ``scenarium audit``: who may call a gateway, and what was written down about it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scenarium.core.cli import base
from scenarium.core.errors import ScenariumError, Words

if TYPE_CHECKING:
    from scenarium.gateway.keys import Key, KeyFile


def _file() -> KeyFile:
    from scenarium.core.config import GatewayConfig
    from scenarium.gateway.keys import KeyFile

    settings = base.registry().settings
    name = settings.validate(GatewayConfig, ("gateway",), "gateway").keys
    if name is None:
        raise ScenariumError("SCN-1102", reason=Words("[gateway] keys is null", "[gateway] keys 为 null"))
    return KeyFile(settings.path_of(name, "gateway", "keys"))


@base.group("keys", en="Make, list and revoke the API keys of gateways.", zh="创建、列出和撤销网关的 API 密钥。")
def keys() -> None:
    """Group of the commands below."""


@base.command(
    "create",
    group=keys,
    en="Make an API key and print it, this once: the file holds its hash alone. A running gateway knows it within 2 s. "
    "Once a key exists, every request needs one; without options it holds for every scenario.",
    zh="创建 API 密钥并打印，仅此一次：文件中只保存其哈希。运行中的网关在 2 秒内生效。一旦存在密钥，所有请求都需要密钥；不带选项时适用于全部场景。",
    examples=(
        "scenarium keys create",
        "scenarium keys create --scenario fraud_text --rate 100/minute --daily 10000 --expires 90d --note 'shop front end'",
        "scenarium keys create --admin",
        'curl -H "Authorization: Bearer $KEY" localhost:8080/scenarios/fraud_text/predict -d \'{"text": "…"}\'',
    ),
)
@base.option("--scenario", "names", metavar="NAME", multiple=True, en="Hold for this scenario only; may be repeated.", zh="仅适用于该场景；可重复。")
@base.option("--admin", is_flag=True, en="Allow administration too.", zh="同时允许管理操作。")
@base.option("--rate", metavar="N/UNIT", en="Requests at most: 100/minute, 5/s, 20/10s.", zh="请求速率上限：100/minute、5/s、20/10s。")
@base.option("--daily", type=click.IntRange(1), en="Requests a day (UTC) at most.", zh="每天（UTC）的请求上限。")
@base.option("--expires", metavar="WHEN", en="30d, 12h, or the last day: 2030-01-31.", zh="有效期：30d、12h，或最后一天：2030-01-31。")
@base.option("--note", default="", en="What it is for; shown by 'keys list'.", zh="用途说明，由 'keys list' 显示。")
@base.json_option
def create(names: tuple[str, ...], admin: bool, rate: str | None, daily: int | None, expires: str | None, note: str, as_json: bool) -> None:
    """Make one key."""
    from scenarium.gateway.keys import parse_expiry, parse_rate

    registry = base.registry()
    for name in names:
        registry.plugin(name)  # an unknown one is an error with the nearest names
    key, text = _file().create(
        scenarios=frozenset(names) or None,
        admin=admin,
        rate=parse_rate(rate) if rate else None,
        daily=daily,
        expires=parse_expiry(expires, time.time()) if expires else None,
        note=note,
    )
    if as_json:
        base.print_json({"secret": text, **_row(key)})
        return
    click.echo(text)
    base.note(f"Keep it: it is shown this once. Its id is {key.id}.", f"请妥善保存：仅显示这一次。其 id 为 {key.id}。")


@base.command(
    "list",
    group=keys,
    en="List the keys: id, state, what they hold for, limits, today's requests. Secrets are not kept and cannot be shown.",
    zh="列出密钥：id、状态、适用范围、限额、今天的请求数。密钥原文不保存，无法显示。",
    examples=("scenarium keys list", "scenarium keys list --json"),
)
@base.json_option
def list_command(as_json: bool) -> None:
    """List all keys."""
    file = _file()
    used = file.usage(datetime.now(UTC).date().isoformat())
    rows = [_row(key) | {"today": used.get(key.id, 0) if key.daily is not None else None} for key in file.read()]
    if as_json:
        base.print_json(rows)
        return
    states = {"active": ("active", "有效"), "expired": ("expired", "已过期"), "revoked": ("revoked", "已撤销")}
    words = (("id", "id"), ("state", "状态"), ("scenarios", "场景"), ("admin", "管理"), ("rate", "速率"), ("daily", "每日"), ("today", "今天"))
    headers = [base.say(*pair) for pair in (*words, ("expires", "到期"), ("note", "说明"))]
    table = []
    for row in rows:
        scope = base.say("all", "全部") if row["scenarios"] is None else ",".join(row["scenarios"])
        admin = base.say("yes", "是") if row["admin"] else "-"
        limits = [row["rate"], row["daily"], row["today"], row["expires"]]
        rate, daily, today, expires = ("-" if value is None else str(value) for value in limits)
        table.append((row["id"], base.say(*states[row["state"]]), scope, admin, rate, daily, today, expires[:16], row["note"]))
    base.print_table(headers, table)


@base.command(
    "revoke",
    group=keys,
    en="End a key. Running gateways refuse it within 2 s.",
    zh="撤销密钥。运行中的网关在 2 秒内生效。",
    examples=("scenarium keys revoke 1f0c9a3b",),
)
@click.argument("ident", metavar="ID")
def revoke(ident: str) -> None:
    """Revoke one key; the whole text of a key is understood too, since that is what leaks."""
    from scenarium.gateway.keys import PREFIX

    ident = ident.removeprefix(PREFIX).partition("-")[0]
    _file().revoke(ident)
    base.note(f"{ident} is revoked.", f"{ident} 已撤销。")


def _row(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "state": key.state,
        "scenarios": None if key.scenarios is None else sorted(key.scenarios),
        "admin": key.admin,
        "rate": str(key.rate) if key.rate else None,
        "daily": key.daily,
        "created": _time(key.created),
        "expires": None if key.expires is None else _time(key.expires),
        "note": key.note,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


@base.group("audit", en="Check the audit log of a gateway.", zh="检查网关的审计日志。")
def audit() -> None:
    """Group of the command below."""


@base.command(
    "verify",
    group=audit,
    en="Walk the chain of an audit log and find a line that was altered, removed, added or moved. Files of a rotated log: oldest first. "
    "Prints the last hash; --head checks that the log still holds a hash that was printed before (lines cut off at its end leave no other trace).",
    zh="沿哈希链检查审计日志，找出被改动、删除、插入或移动的行。轮转过的日志请按从旧到新给出各文件。"
    "会打印最后的哈希；--head 检查日志中仍含有先前记下的哈希（末尾被截掉的行不会留下其他痕迹）。",
    examples=("scenarium audit verify audit.jsonl", "scenarium audit verify audit.jsonl.1 audit.jsonl --head 5e1c…"),
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@base.option(
    "--head",
    metavar="HASH",
    en="A hash that the log must hold: of the gateway's log lines 'audit_head'.",
    zh="日志必须包含的哈希：取自网关日志的 'audit_head' 行。",
)
@base.json_option
def verify_command(files: tuple[Path, ...], head: str | None, as_json: bool) -> None:
    """Check one log."""
    from scenarium.gateway.audit import verify

    try:
        lines, last = verify(files, head)
    except OSError as fault:
        raise ScenariumError("SCN-1108", file=fault.filename, reason=fault.strerror or str(fault)) from None
    if as_json:
        base.print_json({"lines": lines, "head": last})
        return
    click.secho(base.say(f"All {lines} lines are as they were written. Last hash: {last}", f"全部 {lines} 行与写入时一致。最后的哈希：{last}"), fg="green")
