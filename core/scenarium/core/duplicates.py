"""Rows that are the same: found by their content, one of each kept."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scenarium.core import splits
from scenarium.core.findings import Findings
from scenarium.core.hashes import HashMemory
from scenarium.core.types import Field, Row


@dataclass(frozen=True, slots=True)
class Identity:
    """What a row is: the hash of its ``content`` (what a model is shown), its ``target`` (labels and entities), the ``rest``."""

    content: str
    target: str
    rest: str


def identify(rows: Sequence[Row], fields: Mapping[str, Field]) -> list[Identity]:
    """The identity of each row. Content is the texts (width, case and spaces normalised) and images; where a scenario has neither
    it is the whole row, since equal measurements with different outcomes are no mistake."""
    pictures = [name for name, spec in fields.items() if spec.kind in ("image", "mask")]
    paths = list(dict.fromkeys(row[name] for row in rows for name in pictures if isinstance(row.get(name), str)))
    hashes: dict[str, str] = dict(zip(paths, HashMemory().many([Path(path) for path in paths]), strict=True))

    def cell(row: Row, name: str) -> str:
        value = row.get(name)
        if fields[name].kind in ("image", "mask"):
            if isinstance(value, str):
                return hashes[value]
            raw: bytes = value if isinstance(value, bytes) else value.tobytes() if value is not None else b""
            return hashlib.sha256(raw).hexdigest()
        if fields[name].kind == "text":
            return splits.normal(str(value)) if value is not None else ""
        return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)

    shown = [name for name, spec in fields.items() if spec.kind in ("text", "image")]
    targets = [name for name, spec in fields.items() if spec.kind in ("label", "entities")] if shown else []
    shown = shown or list(fields)
    rest = [name for name in fields if name not in shown and name not in targets]

    def join(row: Row, names: Sequence[str]) -> str:
        return "\x1f".join([cell(row, name) for name in names])

    return [Identity(splits.digest(join(row, shown)), join(row, targets), join(row, rest)) for row in rows]


def drop(rows: list[Row], identities: list[Identity], findings: Findings) -> tuple[list[Row], list[Identity]]:
    """Keep one row of equal content: the publisher's test row before val before train, with the most frequent target."""
    by_content: dict[str, list[int]] = {}
    for index, identity in enumerate(identities):
        by_content.setdefault(identity.content, []).append(index)
    order = {"test": 0, "val": 1}
    dropped: set[int] = set()
    for same in by_content.values():
        if len(same) == 1:
            continue
        targets = Counter(identities[i].target for i in same)
        if len(targets) > 1:
            row = rows[same[0]]
            shown = next((str(v)[:60] for k, v in row.items() if not k.startswith("_") and isinstance(v, str)), "")
            findings.add("warning", "SCN-2104", row, value=shown)
        winner = targets.most_common(1)[0][0]
        keep = min((i for i in same if identities[i].target == winner), key=lambda i: (order.get(rows[i].get("_split", ""), 2), i))
        dropped.update(i for i in same if i != keep)
    for index in sorted(dropped):
        findings.add("repair", "SCN-2103", rows[index])
    kept = [i for i in range(len(rows)) if i not in dropped]
    return [rows[i] for i in kept], [identities[i] for i in kept]
