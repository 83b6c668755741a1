"""Reads the user's file or folder into records, by its format. ``scenarium.core.mapping`` makes rows of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scenarium.core.errors import ScenariumError
from scenarium.core.findings import Findings
from scenarium.core.formats import entities, images, tables
from scenarium.core.formats.lines import suffix
from scenarium.core.formats.tables import Record
from scenarium.core.types import Field

TABLES = {".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", ".parquet", ".pq", ".npz"}
TAGGED = {".conll", ".bio", ".iob", ".iob2", ".bioes", ".bmes", ".ner"}
PLAIN = {".txt", ".text", ".md"}


@dataclass
class Table:
    """What was read: records, the columns in order of appearance, and the files it came from."""

    root: Path
    """The file, or the folder."""
    records: list[Record]
    files: list[Path]
    columns: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Columns of the first thousand records: JSON lines may leave keys out.
        self.columns = list(dict.fromkeys(key for record in self.records[:1000] for key in record if not key.startswith("_")))


def read(path: Path, fields: Mapping[str, Field], findings: Findings, encoding: str | None = None) -> Table:
    """Read a file or folder. ``fields`` decide what a folder means: images where a field holds images.

    Raises:
        ScenariumError: SCN-2003 (empty), SCN-2004 (unknown format), SCN-2006 (unreadable, with file and line).
    """
    kinds: set[str] = {f.kind for f in fields.values()}
    if path.is_dir():
        records, files = _folder(path, kinds, findings, encoding)
    else:
        records, files = list(_file(path, kinds, findings, encoding)), [path]
    if "entities" in kinds and records:
        records = entities.untag(records, findings)
    if not records:
        findings.raise_errors()
        raise ScenariumError("SCN-2003", file=path)
    return Table(path, records, files)


def _file(path: Path, kinds: set[str], findings: Findings, encoding: str | None, *, whole: bool = False) -> Iterator[Record]:
    kind = suffix(path)
    if kind in (".csv", ".tsv", ".tab"):
        return tables.read_csv(path, findings, encoding, None if kind == ".csv" else "\t")
    if kind in (".jsonl", ".ndjson", ".json"):
        return tables.read_json(path, findings, encoding)
    if kind in (".parquet", ".pq"):
        return tables.read_parquet(path)
    if kind == ".npz":
        return tables.read_npz(path)
    if kind in TAGGED or (kind in PLAIN and "entities" in kinds and entities.looks_conll(path, encoding)):
        return entities.read_conll(path, findings, encoding)
    if kind in PLAIN:
        return tables.read_text(path, findings, encoding, whole=whole)
    if kind in images.ENDINGS:
        return iter([{"image": str(path), "_file": str(path), "_line": None}])
    en, zh = (f"the ending is {kind!r}", f"扩展名为 {kind!r}") if kind else ("the name has no ending", "文件名没有扩展名")
    raise ScenariumError("SCN-2004", file=path, reason=en, reason_zh=zh)


def _folder(root: Path, kinds: set[str], findings: Findings, encoding: str | None) -> tuple[list[Record], list[Path]]:
    if "image" in kinds:
        beside = sorted(p for p in root.iterdir() if p.is_file() and suffix(p) in TABLES)
        listed = [(path, records) for path in beside if _names_images(records := list(_file(path, kinds, findings, encoding)), root)]
        if listed:
            return [_with_split(record, path, root) for path, records in listed for record in records], [path for path, _ in listed]
        records = list(images.read_folder(root))
        if records:
            return records, []
    found = [p for p in _walk(root) if suffix(p) in TABLES | TAGGED]
    texts = [] if found else [p for p in _walk(root) if suffix(p) in PLAIN and p.name.lower() not in ("readme.md", "readme.txt", "license.txt", "license.md")]
    if not found and not texts:
        en, zh = "the folder holds no file of a known format", "文件夹中没有已知格式的文件"
        if "image" in kinds:
            en, zh = en + " and no images", zh + "，也没有图像"
        raise ScenariumError("SCN-2004", file=root, reason=en, reason_zh=zh)
    records = []
    for path in found or texts:
        # A folder of texts holds a document a file; its sub-folder, if any, is the label.
        label = path.parent.name if texts and path.parent != root and path.parent.name.lower() not in images.SPLITS else None
        for record in _file(path, kinds, findings, encoding, whole=bool(texts)):
            if label:
                record.setdefault("label", label)
            records.append(_with_split(record, path, root))
    return records, found or texts


def _names_images(records: list[Record], root: Path) -> bool:
    """Whether a table beside images is about them: a cell of its first row is the path of one."""
    first = records[0] if records else {}
    cells = [value for key, value in first.items() if isinstance(value, str) and not key.startswith("_")]
    return any(Path(cell).suffix.lower() in images.ENDINGS and (root / cell).is_file() for cell in cells)


def _with_split(record: Record, path: Path, root: Path) -> Record:
    split = _split_of(path, root)
    return {"_split": split, **record} if split else record


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _split_of(path: Path, root: Path) -> str | None:
    """The split that a publisher's file or folder name tells: ``train.jsonl``, ``dev-00000-of-00001.parquet``, ``test/a.txt``."""
    words = [path.name.lower().partition(".")[0], *(folder.lower() for folder in path.relative_to(root).parts[:-1])]
    for word in words:
        head = word.replace("_", "-").partition("-")[0]
        if head in images.SPLITS:
            return images.SPLITS[head]
    return None
