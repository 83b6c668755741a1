"""From the user's file or the default sources to a checked, deduplicated, split data set with its manifest."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from scenarium.core import duplicates, formats, mapping, remote, sources, splits
from scenarium.core.cache import Cache
from scenarium.core.config import DataConfig
from scenarium.core.errors import ScenariumError
from scenarium.core.findings import Findings
from scenarium.core.hashes import HashMemory, sha256, tree_sha256
from scenarium.core.progress import Progress
from scenarium.core.registry import Scenario
from scenarium.core.types import Data, Field, Origin, Row, Source, SplitName

FORMAT = 1
"""Version of the data manifest."""
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
Fields = Mapping[str, Field]


@dataclass
class Part:
    """One place that rows came from: the user's path, or one default source."""

    name: str
    origin: Origin
    licence: str
    rows: list[Row]
    read: int
    """Records there were, those without a required value too."""
    root: str = ""
    """The user's path or URL; empty for a default source."""
    local: Path | None = None
    """Where the files of ``root`` lie here."""
    files: list[Path] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    map: dict[str, str] = field(default_factory=dict)
    pinned: list[dict[str, Any]] = field(default_factory=list)
    """The package and hub files of a default source."""


@dataclass
class Prepared:
    """What ``assemble`` made: the data, and all that was found on the way."""

    data: Data
    parts: list[Part]
    read: int
    """Rows read, before any was left out."""
    findings: Findings


def prepare(scenario: Scenario, progress: Progress) -> Data:
    """Read, check, deduplicate and split the data that the scenario's settings name. Every repair is told to ``progress``.

    Raises:
        ScenariumError: SCN-20xx, with file and line where there are any.
    """
    findings = Findings()
    try:
        prepared = assemble(scenario, progress, findings)
    finally:
        for found in findings:
            if found.severity != "error":
                progress.note(found.text())
    return prepared.data


def assemble(scenario: Scenario, progress: Progress, findings: Findings) -> Prepared:
    """``prepare`` with its inner results. Findings are kept even where it raises."""
    config, fields = scenario.config.data, scenario.hook.fields(config=scenario.config)
    parts = gather(scenario, fields, progress, findings)
    findings.raise_errors()
    # The user's files belong to one publisher; each default source has its own.
    rows = [{**row, "_part": 0 if config.path else number} for number, part in enumerate(parts) for row in part.rows]
    read = sum(part.read for part in parts)
    rows = _fit_rule(rows, config, findings)
    if config.limit and len(rows) > config.limit:
        rows = _limited(rows, config)
    rows = drop_unusable_images(rows, fields, findings)
    findings.raise_errors()
    identities = duplicates.identify(rows, fields)
    rows, identities = duplicates.drop(rows, identities, findings)
    keys = [_split_key(row, identity, fields) for row, identity in zip(rows, identities, strict=True)]
    names = splits.divide(rows, keys, config, findings, lambda row: classes_of(row, fields))
    divided: dict[SplitName, list[Row]] = {name: [] for name in SPLITS}
    for row, name in zip(rows, names, strict=True):
        divided[name].append(row)
    _check_classes(rows, fields, findings)
    splits.find_leaks(divided, fields, config, findings)
    if not divided["train"] or (config.test and not divided["test"]):
        raise ScenariumError("SCN-2009", rows=len(rows), name=scenario.name)
    for row in rows:
        row.pop("_key", None)
        row.pop("_part")
    whole = hashlib.sha256("\n".join(sorted(f"{n} {i.content} {i.target} {i.rest}" for n, i in zip(names, identities, strict=True))).encode()).hexdigest()
    origin = combined_origin([part.origin for part in parts])
    data = Data(divided["train"], divided["val"], divided["test"], origin, {})
    data.manifest = make_manifest(data, parts, read, fields, config, findings, whole)
    return Prepared(data, parts, read, findings)


# ── gathering ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def gather(scenario: Scenario, fields: Fields, progress: Progress, findings: Findings) -> list[Part]:
    """Read the user's paths, else all default sources that may be used."""
    config = scenario.config.data
    if config.path:
        given: list[tuple[str, SplitName | None]] = [(config.path, "train" if config.test_path else None)]
        given += [(path, name) for path, name in ((config.val_path, "val"), (config.test_path, "test")) if path]  # type: ignore[misc]
        return [_user_part(url, split, scenario, fields, progress, findings) for url, split in given]
    usable, parts = [], []
    offered: Sequence[Source] = scenario.hook.sources(config=scenario.config)
    for source in offered:
        if source.free or source.name in config.accept_licence:
            usable.append(source)
        else:
            findings.add("repair", "SCN-2113", kind=source.name, source=source.name, licence=source.licence)
    if not usable:
        needs = ", ".join(f"{key} ({spec.doc})" for key, spec in fields.items() if spec.required)
        closed = [f"{s.name} ({s.licence})" for s in offered]
        en = f" Or accept a licence with --set data.accept_licence: {'; '.join(closed)}." if closed else ""
        zh = f"也可用 --set data.accept_licence 接受许可：{'；'.join(closed)}。" if closed else ""
        raise ScenariumError("SCN-2002", name=scenario.name, fields=needs, licences=en, licences_zh=zh)
    for source in usable:
        progress.note(f"reading source {source.name} ({source.origin}, {source.licence})")
        parts.append(_source_part(source, fields, config, progress, findings))
    return parts


def _user_part(url: str, split: SplitName | None, scenario: Scenario, fields: Fields, progress: Progress, findings: Findings) -> Part:
    config = scenario.config.data
    local = remote.local_copy(url, Cache(), progress)
    progress.note(f"reading {url}")
    table = formats.read(local, fields, findings, config.encoding)
    match = mapping.match_columns(table, fields, config.map, scenario.name, findings)
    _, extra = splits.parse_rule(config.split, [*table.columns, *fields])
    rows = mapping.to_rows(table, fields, match.columns, config.map_label, extra, findings)
    for row in rows:
        if split:
            row["_split"] = split
    images = [Path(row[key]) for key, spec in fields.items() if spec.kind in ("image", "mask") for row in rows if isinstance(row.get(key), str)]
    root = url if "://" in url else str(local.resolve())
    files = list(dict.fromkeys([*table.files, *images]))
    return Part(Path(url).name or url, "real", "the user's own", rows, len(table.records), root, local, files, table.columns, match.columns)


def _source_part(source: Source, fields: Fields, config: DataConfig, progress: Progress, findings: Findings) -> Part:
    paths = [sources.fetch(file, progress) for file in source.files]
    records = [{"_file": source.name, "_line": None, **row} for row in source.read(paths)]
    if not records:
        raise ScenariumError("SCN-2003", file=f"source {source.name}")
    table = formats.Table(Path.cwd(), records, [])
    match = mapping.match_columns(table, fields, {}, source.name, findings)
    _, extra = splits.parse_rule(config.split, [*table.columns, *fields])
    rows = mapping.to_rows(table, fields, match.columns, config.map_label, extra, findings)
    pinned = [{"type": type(file).__name__, **asdict(file)} for file in source.files]
    return Part(source.name, source.origin, source.licence, rows, len(records), columns=table.columns, map=match.columns, pinned=pinned)


def combined_origin(origins: Sequence[Origin]) -> Origin:
    """The origin of parts taken together."""
    found = set(origins)
    if len(found) == 1:
        return found.pop()
    return "real parts, generated" if found & {"real", "real parts, generated"} else "generated"


# ── cleaning ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _fit_rule(rows: list[Row], config: DataConfig, findings: Findings) -> list[Row]:
    """Give each row what the rule of the split needs: ``_group``, or a moment in ``_key``."""
    if config.split.startswith("time:"):
        return splits.check_times(rows, findings)
    if config.split.startswith("group:"):
        for row in rows:
            group = row.pop("_key")
            if group is not None:
                row["_group"] = str(group)
    return rows


def _limited(rows: list[Row], config: DataConfig) -> list[Row]:
    """At most ``config.limit`` rows: the latest of a time split, else those whose hash is lowest (a stable random choice, in order)."""
    if config.split.startswith("time:"):
        order = sorted(range(len(rows)), key=lambda i: rows[i]["_key"])[-config.limit :]  # type: ignore[operator]
    else:

        def rank(index: int) -> float:
            row = rows[index]
            shown = {k: _brief(v) for k, v in row.items() if k not in ("_line", "_split")}
            return splits.place("limit" + json.dumps(shown, sort_keys=True, default=str))

        order = sorted(range(len(rows)), key=rank)[: config.limit]
    return [rows[i] for i in sorted(order)]


def _brief(value: Any) -> str | int | float:
    """A value within the key of a row's place. Bytes and arrays stand by a hash of all they hold: their beginning says little of a picture."""
    if isinstance(value, str | int | float):
        return value
    raw = value if isinstance(value, bytes) else value.tobytes() if getattr(value, "ndim", 0) else None
    return str(value)[:200] if raw is None else hashlib.sha256(raw).hexdigest()


def drop_unusable_images(rows: list[Row], fields: Fields, findings: Findings) -> list[Row]:
    """Leave out rows whose image or mask does not decode: stated up to one in ten, an error beyond."""
    names = [name for name, spec in fields.items() if spec.kind in ("image", "mask")]
    cells = [(index, row[name]) for index, row in enumerate(rows) for name in names if isinstance(row.get(name), str | bytes)]
    if not cells:
        return rows
    broken = formats.images.unusable([image for _, image in cells])
    if not broken:
        return rows
    severity: Literal["error", "repair"] = "error" if 10 * len(broken) > len(cells) else "repair"
    for position, reason in broken.items():
        index, image = cells[position]
        row = rows[index]
        where = {"_file": image} if isinstance(image, str) else row
        findings.add(severity, "SCN-2015" if severity == "error" else "SCN-2107", where, reason=reason, total=len(cells))
    bad = {cells[position][0] for position in broken}
    return [row for index, row in enumerate(rows) if index not in bad]


def _split_key(row: Row, identity: duplicates.Identity, fields: Fields) -> str:
    """What stays together in a split: the group, else texts that differ in digits and punctuation only, else equal content."""
    if row.get("_group") is not None:
        return "group " + str(row["_group"])
    texts = [name for name, spec in fields.items() if spec.kind == "text"]
    if texts and not any(spec.kind == "image" for spec in fields.values()):
        return "text " + "\x1f".join(splits.skeleton(str(row.get(name, ""))) for name in texts)
    return "content " + identity.content


def classes_of(row: Row, fields: Fields) -> list[str]:
    """The classes that a row is an example of: its label, and the labels of its entities.

    Of several label fields that of a usual name (``label``, ``class`` …) tells the class, else the last: tables name their
    features before the outcome.
    """
    labels = [name for name, spec in fields.items() if spec.kind == "label"]
    name = next((name for name in labels if name in mapping.SYNONYMS["label"]), labels[-1] if labels else "")
    found = [str(row[name])] if row.get(name) is not None else []
    for key, spec in fields.items():
        if spec.kind == "entities":
            found += sorted({str(entity["label"]) for entity in row.get(key) or ()})
    return found


def _check_classes(rows: Sequence[Row], fields: Fields, findings: Findings) -> None:
    counts = Counter(name for row in rows for name in classes_of(row, fields))
    single = [name for name, count in counts.items() if count == 1]
    if single:
        findings.add("warning", "SCN-2108", count=len(single), value=", ".join(single[:10]), first=single[0])
    if len(counts) == 1 and any(spec.kind == "label" for spec in fields.values()):
        findings.add("warning", "SCN-2116", value=next(iter(counts)))


# ── manifest ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_manifest(data: Data, parts: Sequence[Part], read: int, fields: Fields, config: DataConfig, findings: Findings, whole: str) -> dict[str, Any]:
    """The data manifest (JSON): where the rows came from, every file with SHA-256, counts, the split's rule, repairs, the hash of the whole.

    ``sha256`` is the hash of the rows and their splits, so the same data at another path has the same one.
    """
    entries = []
    for part in parts:
        files = []
        for path, digest in zip(part.files, HashMemory().many(part.files), strict=True):
            files.append({"path": _relative(path, part.local or path), "size": path.stat().st_size, "sha256": digest})
        entries.append(
            {"name": part.name, "origin": part.origin, "licence": part.licence, "rows": len(part.rows), "root": part.root}
            | {"map": part.map, "pinned": part.pinned, "files": files}
        )
    used = {name: data.rows(name) for name in SPLITS}
    classes = {name: Counter(c for row in rows for c in classes_of(row, fields)) for name, rows in used.items()}
    counts = {name: {"rows": len(rows), "classes": dict(sorted(classes[name].items()))} for name, rows in used.items()}
    return {
        "format": FORMAT,
        "sha256": whole,
        "origin": data.origin,
        "rows": {"read": read, "used": sum(len(rows) for rows in used.values())},
        "splits": counts,
        "split": {"rule": config.split, "val": config.val, "test": config.test, "limit": config.limit},
        "map_label": config.map_label,
        "sources": entries,
        "findings": [found.json() for found in findings],
    }


def _relative(path: Path, root: Path) -> str:
    """``path`` below ``root`` (a folder, or the file itself), with forward slashes."""
    base = root if root.is_dir() else root.parent
    return Path(os.path.relpath(path, base)).as_posix()


@dataclass(frozen=True, slots=True)
class Difference:
    """One file that is not what the manifest says."""

    path: str
    kind: Literal["changed", "missing", "added"]


def verify(manifest: Mapping[str, Any]) -> list[Difference]:
    """Compare the files of a data manifest with what lies there now; an empty list: all as it was.

    The user's own paths are read again (a URL is fetched again if it changed). Files of packages are compared where they are in
    the cache; they are checked against their pin whenever they are fetched.
    """
    found: list[Difference] = []
    for source in manifest.get("sources", []):
        if source["root"]:
            found += _verify_path(source)
        for pinned in source["pinned"]:
            entry = Cache().folder / "entries" / str(pinned.get("sha256") or "-")
            if pinned["type"] == "PackageFile" and entry.is_dir() and _entry_hash(entry, pinned["member"]) != pinned["sha256"]:
                found.append(Difference(f"{pinned['package']} {pinned['version']}: {pinned['member']}", "changed"))
    return found


def _entry_hash(entry: Path, member: str) -> str:
    files = sorted(path for path in entry.rglob("*") if path.is_file())
    if sources.many(member):
        return tree_sha256((path.relative_to(entry).as_posix(), sha256(path)) for path in files)
    return sha256(files[0]) if len(files) == 1 else ""


def _verify_path(source: Mapping[str, Any]) -> list[Difference]:
    try:
        root = remote.local_copy(source["root"], Cache(), Progress())
    except ScenariumError as fault:
        if fault.code != "SCN-2001":
            raise
        return [Difference(source["root"], "missing")]
    base = root if root.is_dir() else root.parent
    known = {entry["path"]: entry for entry in source["files"]}
    here = {name: base / name for name in known if (base / name).is_file()}
    found = [Difference(name, "missing") for name in known if name not in here]
    digests = dict(zip(here, HashMemory().many(list(here.values())), strict=True))
    found += [Difference(name, "changed") for name, digest in digests.items() if digest != known[name]["sha256"]]
    if root.is_dir():
        endings = {Path(name).suffix.lower() for name in known}
        beside = (_relative(path, root) for path in root.rglob("*") if path.suffix.lower() in endings and path.is_file())
        # What was left out of the run (a broken image) is listed among its findings; only files of the kinds read can be new data.
        found += [Difference(name, "added") for name in sorted(beside) if name not in known]
    return found
