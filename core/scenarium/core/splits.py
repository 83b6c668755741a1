"""Divides rows into train, val and test: by hash (stable as data grows), by time, by group; and finds what leaks from one into another."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from scenarium.core import mapping
from scenarium.core.config import DataConfig
from scenarium.core.errors import ScenariumError
from scenarium.core.findings import Findings
from scenarium.core.types import Field, Row, SplitName

RANGE = 2.0**64
DIGITS = re.compile(r"\d+")


def parse_rule(split: str, columns: Sequence[str]) -> tuple[Literal["random", "time", "group"], str | None]:
    """The kind of a split and its column.

    Raises:
        ScenariumError: SCN-2008, not a known kind, or no such column.
    """
    kind, _, column = split.partition(":")
    shown = ", ".join(columns) or "-"
    if kind == "random" and not column:
        return "random", None
    if kind not in ("time", "group") or not column:
        raise ScenariumError("SCN-2008", split=split, reason="it is no known kind of split", reason_zh="不是已知的划分方式", columns=shown)
    if column not in columns:
        raise ScenariumError("SCN-2008", split=split, reason=f"there is no column {column!r}", reason_zh=f"没有列 {column!r}", columns=shown)
    return ("time" if kind == "time" else "group"), column


def normal(text: str) -> str:
    """Text after normalising width (NFKC), case and spaces: equal for what a reader takes as the same."""
    plain = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return " ".join(plain.split())


def skeleton(text: str) -> str:
    """Letters of ``normal`` alone, numbers as 0: equal for texts that differ in numbers, links' ids and punctuation."""
    plain = normal(text)
    return DIGITS.sub("0", "".join(filter(str.isalnum, plain))) or plain


def digest(*parts: str) -> str:
    """SHA-256 of the parts, hexadecimal."""
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def place(key: str) -> float:
    """Where a key lies in [0, 1), by its hash alone."""
    return int(hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16], 16) / RANGE


def divide(rows: Sequence[Row], keys: Sequence[str], config: DataConfig, findings: Findings, classes: Callable[[Row], Sequence[str]]) -> list[SplitName]:
    """The split of each row.

    ``keys``: rows of one key stay together. A row's ``_split`` is kept; a publisher's ``train`` is divided into what the
    publisher gave none of (counted by ``_part``: each source for itself). ``random`` and ``group`` place a key by its hash, so new
    rows never move old ones, with two exceptions for small data: a class that would be missing from train gives the key with the
    highest hash to it, and val and test take the key with the lowest hash where they would be empty. ``time`` holds out the latest.
    """
    given: dict[int, set[str]] = {}
    for row in rows:
        given.setdefault(row.get("_part", 0), set()).add(row.get("_split") or "")
    published = set().union(*given.values()) & {"val", "test"}
    if published:
        counts = Counter(row.get("_split") or "-" for row in rows)
        findings.add("repair", "SCN-2115", value=", ".join(f"{name} {count}" for name, count in sorted(counts.items())), split=config.split)
    fixed: list[SplitName | None] = [row["_split"] if row.get("_split") in ("val", "test") else None for row in rows]
    free = [index for index, name in enumerate(fixed) if name is None]
    if config.split.startswith("time:"):
        shares = [0.0 if name in published else share for name, share in (("val", config.val), ("test", config.test))]
        chosen = _by_time([rows[i] for i in free], *shares)
    else:
        bounds = []
        for index in free:
            there = given[rows[index].get("_part", 0)]
            bounds.append((0.0 if "val" in there else config.val, 0.0 if "test" in there else config.test))
        needed: list[SplitName] = [name for name in ("test", "val") if getattr(config, name) and name not in published]
        chosen = _by_hash([keys[i] for i in free], bounds, needed, [classes(rows[i]) for i in free])
    result: list[SplitName] = [name or "train" for name in fixed]
    for index, name in zip(free, chosen, strict=True):
        result[index] = name
    return result


def _by_hash(keys: Sequence[str], bounds: Sequence[tuple[float, float]], needed: Sequence[SplitName], classes: Sequence[Sequence[str]]) -> list[SplitName]:
    places = {key: place(key) for key in keys}
    split: dict[str, SplitName] = {}
    for key, (val, test) in zip(keys, bounds, strict=True):
        split.setdefault(key, "test" if places[key] < test else "val" if places[key] < test + val else "train")
    ranked = sorted(places, key=lambda key: places[key])
    # Small data: each split that is asked for gets a key, as long as train keeps one.
    if len(ranked) >= 3:
        for part in needed:
            spare = [key for key in ranked if split[key] == "train"]
            if part not in split.values() and spare:
                split[spare[0]] = part
    highest: dict[str, str] = {}
    for key, names in zip(keys, classes, strict=True):
        for name in names:
            if name not in highest or places[key] > places[highest[name]]:
                highest[name] = key
    trained = {name for key, names in zip(keys, classes, strict=True) if split[key] == "train" for name in names}
    for name, key in highest.items():
        if name not in trained:
            split[key] = "train"
    if "train" not in split.values() and ranked:
        split[ranked[-1]] = "train"
    return [split[key] for key in keys]


def _by_time(rows: Sequence[Row], val: float, test: float) -> list[SplitName]:
    moments = sorted(row["_key"] for row in rows)
    if not moments:
        return []

    def bound(share: float) -> Any:
        # Rows of one moment stay together: everything at or after the bound is later than everything before it.
        return moments[min(len(moments) - 1, round(len(moments) * (1 - share)))]

    test_from = bound(test) if test else None
    val_from = bound(test + val) if val else None
    names: list[SplitName] = []
    for row in rows:
        at = row["_key"]
        late = test_from is not None and at >= test_from
        names.append("test" if late else "val" if val_from is not None and at >= val_from else "train")
    return names


def check_times(rows: Sequence[Row], findings: Findings) -> list[Row]:
    """Turn each row's ``_key`` into a moment (or keep it a number); rows without one are left out and stated, wrong ones are errors."""
    kept = []
    for row in rows:
        raw = row.get("_key")
        try:
            moment = mapping.time(raw)
        except (ValueError, OverflowError):
            en, zh = mapping.KINDS["time"]
            findings.add("error", "SCN-2007", row, field="split", kind="time", value=str(raw)[:60], expected=en, expected_zh=zh)
            continue
        if moment is None:
            findings.add("repair", "SCN-2102", row, field="split")
            continue
        row["_key"] = moment
        kept.append(row)
    return kept


def find_leaks(splits: Mapping[SplitName, Sequence[Row]], fields: Mapping[str, Field], config: DataConfig, findings: Findings) -> None:
    """State near-identical texts, groups and later moments that stand both in train and in what is held out."""
    texts = [name for name, spec in fields.items() if spec.kind == "text"]
    held = [*splits["val"], *splits["test"]]
    # A random split keeps near-identical texts together by itself, unless a publisher fixed some rows.
    if texts and (config.split != "random" or any("_split" in row for row in held)):
        trained = {"\x1f".join(skeleton(str(row.get(name, ""))) for name in texts) for row in splits["train"]}
        for row in held:
            if "\x1f".join(skeleton(str(row.get(name, ""))) for name in texts) in trained:
                findings.add("warning", "SCN-2109", row, value=str(row.get(texts[0]))[:60])
    groups = {str(row["_group"]) for row in splits["train"] if "_group" in row} & {str(row["_group"]) for row in held if "_group" in row}
    if groups:
        findings.add("warning", "SCN-2110", count=len(groups), value=", ".join(sorted(groups)[:5]))
    if config.split.startswith("time:") and held:
        first = min(row["_key"] for row in held)
        for row in splits["train"]:
            if row["_key"] >= first:
                findings.add("warning", "SCN-2111", row)
