"""From records as a file has them to rows as a scenario needs them: which column is which field, and each value in its type."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scenarium.core.errors import ScenariumError
from scenarium.core.findings import Findings, Severity
from scenarium.core.formats import Table, entities
from scenarium.core.types import Field, FieldKind, Row

SYNONYMS: dict[FieldKind, tuple[str, ...]] = {
    "text": ("text", "content", "sentence", "message", "review", "body", "document", "utterance", "query", "内容", "文本", "正文", "句子", "短信", "评论"),
    "label": ("label", "labels", "class", "category", "target", "intent", "sentiment", "tag", "y", "标签", "类别", "分类", "类型"),
    "image": ("image", "img", "file", "file_name", "filename", "image_path", "path", "picture", "图片", "图像", "文件", "文件名"),
    "mask": ("mask", "mask_path", "segmentation", "掩码", "掩膜"),
    "time": ("time", "date", "datetime", "timestamp", "ds", "时间", "日期"),
    "entities": ("entities", "label", "labels", "spans", "annotations", "ner", "实体", "标注"),
    "number": ("value", "数值", "值"),
    "integer": (),
    "json": (),
}
NOTHING = frozenset({"", "nan", "null", "none", "na", "n/a", "#n/a", "-", "空"})
"""Written values that mean that there is none, where a number or a time is expected."""

KINDS: dict[FieldKind, tuple[str, str]] = {
    "text": ("a text", "文本"),
    "label": ("a label", "标签"),
    "number": ("a finite number", "有限的数值"),
    "integer": ("a whole number", "整数"),
    "time": ("a date or time", "日期或时间"),
    "image": ("an image", "图像"),
    "mask": ("a mask", "掩码图像"),
    "entities": ("a list of entities", "实体列表"),
    "json": ("a JSON value", "JSON 值"),
}


@dataclass(frozen=True)
class Match:
    """Field to column, and those of them that were guessed by a synonym."""

    columns: dict[str, str]
    guessed: dict[str, str]


def match_columns(table: Table, fields: Mapping[str, Field], wanted: Mapping[str, str], name: str, findings: Findings) -> Match:
    """Decide which column each field is read from: ``--map``, else the same name, else the same but for case, else a synonym.

    Raises:
        ScenariumError: SCN-2014 (``--map`` names no field), SCN-2005 (no column for a required field, or no such column).
    """
    unknown = next((key for key in wanted if key not in fields), None)
    if unknown is not None:
        raise ScenariumError("SCN-2014", field=unknown, name=name, fields=", ".join(fields))
    columns, guessed = {}, {}
    free = [c for c in table.columns if c not in wanted.values()]
    for key, spec in fields.items():
        if key in wanted:
            if wanted[key] not in table.columns:
                raise _no_column(key, spec, table, wanted[key])
            columns[key] = wanted[key]
        elif key in free:
            columns[key] = key
    taken = set(columns.values())
    for key, spec in fields.items():
        if key in columns:
            continue
        found = _synonym(key, spec, fields, [c for c in free if c not in taken])
        if found:
            columns[key] = guessed[key] = found
            taken.add(found)
            findings.add("repair", "SCN-2105", field=key, column=found)
        elif spec.required:
            raise _no_column(key, spec, table, key)
    return Match(columns, guessed)


def _synonym(key: str, spec: Field, fields: Mapping[str, Field], free: Sequence[str]) -> str | None:
    """A column by a name that differs in case only, or by a usual name of the kind where the scenario has one field of it."""
    plain = {c.lower().strip().replace(" ", "_").replace("-", "_"): c for c in reversed(free)}
    if key.lower() in plain:
        return plain[key.lower()]
    if sum(f.kind == spec.kind for f in fields.values()) > 1 and key not in SYNONYMS[spec.kind]:
        return None
    return next((plain[word] for word in SYNONYMS[spec.kind] if word in plain), None)


def _no_column(key: str, spec: Field, table: Table, sought: str) -> ScenariumError:
    close = difflib.get_close_matches(sought, table.columns, 1, 0.5)
    # With nothing similar, the one column left is the likely one; else the reader has to choose.
    nearest = close[0] if close else table.columns[0] if len(table.columns) == 1 else "COLUMN"
    return ScenariumError("SCN-2005", field=key, file=table.root, doc=spec.doc, columns=", ".join(table.columns) or "-", nearest=nearest)


def to_rows(
    table: Table, fields: Mapping[str, Field], columns: Mapping[str, str], labels: Mapping[str, str], extra: str | None, findings: Findings
) -> list[Row]:
    """Convert every record. ``labels`` renames labels; ``extra`` is a column kept as ``_key`` for the split.

    Rows without a required value are left out and stated (more than half: SCN-2016); values that are not of the field's kind are
    errors (SCN-2007, SCN-2018, SCN-2019), collected with file and line.
    """
    rows: list[Row] = []
    missing: dict[str, int] = {}
    # The text goes before the entities, which are checked against it.
    order = sorted(columns, key=lambda key: fields[key].kind == "entities")
    converter = _Converter(table.root if table.root.is_dir() else table.root.parent, labels)
    for record in table.records:
        row = _row(record, fields, columns, order, converter, findings, missing)
        if row is None:
            continue
        row["_file"], row["_line"] = record.get("_file"), record.get("_line")
        for reserved in ("_group", "_split"):
            if record.get(reserved) is not None:
                row[reserved] = record[reserved]
        if extra is not None:
            row["_key"] = row[extra] if extra in row else record.get(extra)
        rows.append(row)
    for key, count in missing.items():
        if 2 * count > len(table.records):
            places = findings.by_kind["SCN-2102", key, ""].places
            findings.add("error", "SCN-2016", field=key, file=table.root, count=count, total=len(table.records), places=", ".join(places))
    return rows


def _row(
    record: Row,
    fields: Mapping[str, Field],
    columns: Mapping[str, str],
    order: Sequence[str],
    converter: _Converter,
    findings: Findings,
    missing: dict[str, int],
) -> Row | None:
    row: Row = {}
    for key in order:
        kind, raw = fields[key].kind, record.get(columns[key])
        try:
            value, repair = converter(kind, raw, row)
        except FileNotFoundError:
            findings.add("error", "SCN-2018", record, field=key, value=str(raw))
            return None
        except entities.EntityError as fault:
            findings.add("error", "SCN-2019", record, field=key, reason=fault.reason, reason_zh=fault.reason_zh)
            return None
        except (ValueError, OverflowError, TypeError):
            severity: Severity = "error" if fields[key].required else "repair"
            code = "SCN-2007" if fields[key].required else "SCN-2117"
            shown = raw if isinstance(raw, int | float) else str(raw)[:60]
            en, zh = KINDS[kind]
            findings.add(severity, code, record, field=key, kind=kind, value=shown, expected=en, expected_zh=zh)
            if fields[key].required:
                return None
            continue
        if repair:
            en, zh = {"inclusive": ("with an inclusive end", "的结束位置含在内"), "utf-16": ("in UTF-16 units", "按 UTF-16 单元计数")}[repair]
            findings.add("repair", "SCN-2112", record, field=key, kind=repair, value=en, value_zh=zh)
        if value is not None:
            row[key] = value
        elif fields[key].required:
            missing[key] = missing.get(key, 0) + 1
            findings.add("repair", "SCN-2102", record, field=key)
            return None
    return row


class _Converter:
    """One value into the type of its field. Raises ``ValueError`` for what cannot be one; None stands for no value."""

    def __init__(self, folder: Path, labels: Mapping[str, str]) -> None:
        self.folder = folder
        self.labels = labels
        self.by_kind: dict[str, Callable[[Any], Any]] = {
            "text": text,
            "label": self.label,
            "number": number,
            "integer": integer,
            "time": time,
            "image": self.image,
            "mask": self.image,
            "json": plain_json,
        }

    def __call__(self, kind: FieldKind, raw: Any, row: Row) -> tuple[Any, str | None]:
        if kind != "entities":
            return self.by_kind[kind](raw), None
        if raw is None or raw == "":
            return [], None
        whole = next((value for value in row.values() if isinstance(value, str)), "")
        found, counted = entities.normalise(plain_json(raw), whole)
        if self.labels:
            found = [e | {"label": self.labels.get(e["label"], e["label"])} for e in found]
        return found, counted

    def label(self, raw: Any) -> str | None:
        if isinstance(raw, list) and len(raw) == 1:
            raw = raw[0]
        if isinstance(raw, dict | list):
            raise ValueError(raw)
        if isinstance(raw, float):
            if math.isnan(raw):
                return None
            # A column of whole numbers with gaps becomes floating point in many programs.
            raw = int(raw) if raw.is_integer() else raw
        name = "" if raw is None else str(raw).strip()
        return self.labels.get(name, name) or None

    def image(self, raw: Any) -> Any:
        if raw is None or isinstance(raw, bytes) or hasattr(raw, "shape"):
            return raw
        if not isinstance(raw, str | Path):
            raise ValueError(raw)
        if not str(raw).strip():
            return None
        path = self.folder / str(raw)
        if not path.is_file():
            raise FileNotFoundError(path)
        return str(path)


def text(raw: Any) -> str | None:
    """Text as it stands; None where it is empty or only spaces."""
    if raw is None or (isinstance(raw, float) and math.isnan(raw)):
        return None
    if isinstance(raw, dict | list | bytes):
        raise ValueError(raw)
    found = str(raw)
    return found if found.strip() else None


def number(raw: Any) -> float | None:
    """A finite number; ``1,234.5`` and full-width digits are understood. None where there is none (empty, NaN).

    Raises:
        ValueError: no number, or infinite.
    """
    if raw is None or isinstance(raw, str):
        if raw is None or raw.strip().lower() in NOTHING:
            return None
        raw = raw.strip()
        if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", raw):
            raw = raw.replace(",", "")
        if "_" in raw:
            raise ValueError(raw)
    found = float(raw)
    if math.isnan(found):
        return None
    if math.isinf(found):
        raise ValueError(raw)
    return found


def integer(raw: Any) -> int | None:
    """A whole number.

    Raises:
        ValueError: no number, or a fraction.
    """
    if isinstance(raw, int):
        return int(raw)
    if isinstance(raw, str) and re.fullmatch(r"\s*[-+]?\d+\s*", raw):
        return int(raw)  # not by way of a float, which loses digits
    found = number(raw)
    if found is not None and not found.is_integer():
        raise ValueError(raw)
    return None if found is None else int(found)


LAYOUTS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y-%m", "%Y%m%d%H%M%S", "%Y%m%d", "%Y-%m-%d %H:%M:%S.%f")


def time(raw: Any) -> datetime | None:
    """A moment, UTC, without a zone: ISO 8601, ``2024/1/5 9:30``, ``2024年1月5日``, ``20240105``, Unix seconds or milliseconds.

    Raises:
        ValueError: none of these; day-month and month-day orders are not guessed.
    """
    if raw is None or (isinstance(raw, float) and math.isnan(raw)) or (isinstance(raw, str) and raw.strip().lower() in NOTHING):
        return None
    if isinstance(raw, datetime):
        return _utc(raw)
    if hasattr(raw, "isoformat"):
        return datetime.fromisoformat(raw.isoformat())
    if isinstance(raw, int | float) and not 19000101 <= raw <= 21001231:
        return datetime.fromtimestamp(raw / 1000 if abs(raw) >= 1e11 else raw, UTC).replace(tzinfo=None)
    written = str(raw).strip()
    try:
        return _utc(datetime.fromisoformat(written))
    except ValueError:
        pass
    if re.fullmatch(r"\d{10}|\d{13}", written):
        return time(int(written))
    plain = re.sub(r"[年月/.](?=\d)", "-", re.sub(r"日\s*", " ", written)).replace("时", ":").replace("T", " ").rstrip("月年秒分 ").strip()
    for layout in LAYOUTS:
        try:
            return datetime.strptime(plain, layout)
        except ValueError:
            continue
    raise ValueError(raw)


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def plain_json(raw: Any) -> Any:
    """A JSON value; text of a table's cell is parsed where it is JSON."""
    if isinstance(raw, str) and raw.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(raw)
        except ValueError:
            return raw
    return None if isinstance(raw, str) and not raw.strip() else raw
