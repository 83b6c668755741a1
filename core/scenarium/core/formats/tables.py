"""Files that hold records: CSV, TSV, JSON lines, a JSON array, Parquet, NPZ, plain text."""

from __future__ import annotations

import csv
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from scenarium.core.errors import ScenariumError
from scenarium.core.findings import Findings
from scenarium.core.formats.lines import read_lines, suffix

Record: TypeAlias = dict[str, Any]
"""Column to value as the file has it, with ``_file`` (str) and ``_line`` (int, from 1; None where there are no lines)."""


WRAPPERS = ("data", "rows", "records", "items", "examples", "samples")
"""Names under which one JSON object holds a list of records."""


def read_csv(path: Path, findings: Findings, encoding: str | None, separator: str | None) -> Iterator[Record]:
    """Rows of a table with a header (RFC 4180). ``separator`` None: the most frequent of ``,`` ``;`` TAB ``|`` in the header."""
    lines = read_lines(path, findings, encoding)
    first, skipped = _first(lines)
    if not first:
        return
    separator = separator or max(",;\t|，", key=first.count)
    # Long documents exceed the module's 128 KB; the limit is process-wide, so it is only ever raised.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(itertools.chain([first], lines), delimiter=separator)
    header: list[str] = []
    line = skipped
    try:
        for cells in reader:
            line, start = skipped + reader.line_num, line + 1
            if not header:
                header = _header(cells)
                continue
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(header):
                if any(cell.strip() for cell in cells[len(header) :]):
                    findings.add("error", "SCN-2017", file=path, line=start, separator=separator)
                    continue
                cells = cells[: len(header)]
            elif len(cells) < len(header):
                findings.add("repair", "SCN-2106", file=path, line=start)
            record: Record = dict(zip(header, cells, strict=False))
            record["_file"], record["_line"] = str(path), start
            yield record
    except csv.Error as fault:
        raise ScenariumError("SCN-2006", file=path, line=skipped + reader.line_num, reason=str(fault), reason_zh=str(fault)) from None


def _first(lines: Iterator[str]) -> tuple[str, int]:
    """The first line that is not blank (empty: there is none), and how many were passed over."""
    for skipped, line in enumerate(lines):
        if line.strip():
            return line, skipped
    return "", 0


def _header(cells: list[str]) -> list[str]:
    names: list[str] = []
    for index, cell in enumerate(cells):
        name = cell.strip().lstrip("\ufeff") or f"column{index + 1}"
        names.append(name if name not in names else f"{name}.{index + 1}")
    return names


def read_json(path: Path, findings: Findings, encoding: str | None) -> Iterator[Record]:
    """Records of JSON lines, of one JSON array, or of an object that holds them under a usual name (``WRAPPERS``)."""
    lines = read_lines(path, findings, encoding)
    first, skipped = _first(lines)
    if not first:
        return
    second, blank = _first(lines)
    lines = itertools.chain([first, *["\n"] * blank, second], lines)
    # One object on a line of its own is one record, unless the file is a single line: that may be a wrapper of all records.
    if first.lstrip().startswith("{") and _parses(first) and (second or suffix(path) != ".json"):
        yield from _json_lines(path, lines, skipped)
        return
    text = "".join(lines)
    try:
        value = json.loads(text)
    except ValueError as fault:
        line = skipped + getattr(fault, "lineno", 1)
        raise ScenariumError("SCN-2006", file=path, line=line, reason=f"not JSON: {fault}", reason_zh=f"不是有效的 JSON：{fault}") from None
    starts = [skipped + start for start in _starts(text)] if isinstance(value, list) else None
    if isinstance(value, dict):
        value = next((value[name] for name in WRAPPERS if isinstance(value.get(name), list)), [value])
    for index, record in enumerate(value):
        yield _record(record, path, starts[index] if starts else None)


def _parses(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _json_lines(path: Path, lines: Iterator[str], skipped: int) -> Iterator[Record]:
    for number, line in enumerate(lines, skipped + 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as fault:
            raise ScenariumError("SCN-2006", file=path, line=number, reason=f"not JSON: {fault}", reason_zh=f"不是有效的 JSON：{fault}") from None
        yield _record(record, path, number)


def _record(record: object, path: Path, line: int | None) -> Record:
    if not isinstance(record, dict):
        shown = json.dumps(record, ensure_ascii=False)[:40]
        raise ScenariumError("SCN-2006", file=path, line=line, reason=f"{shown} is not an object", reason_zh=f"{shown} 不是对象")
    if isinstance(record.get("data"), dict) and "annotations" in record:
        record = {**record, **record["data"]}  # Label Studio keeps what was labelled below "data"
    return {**record, "_file": str(path), "_line": line}


def _starts(text: str) -> list[int]:
    """The line on which each element of a JSON array begins."""
    decoder = json.JSONDecoder()
    found: list[int] = []
    index, line, counted = text.index("[") + 1, 1, 0
    filled = re.compile(r"[^\s,]")
    while inside := filled.search(text, index):
        index = inside.start()
        if text[index] == "]":
            break
        line += text.count("\n", counted, index)
        counted = index
        found.append(line)
        _, index = decoder.raw_decode(text, index)
    return found


def read_parquet(path: Path) -> Iterator[Record]:
    """Rows of a Parquet file, batch by batch; an image column of a hub data set (``{"bytes", "path"}``) becomes its bytes."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise ScenariumError("SCN-2013", what=path.name, module="pyarrow") from None
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    record = {k: v["bytes"] if isinstance(v, dict) and v.keys() >= {"bytes", "path"} and v["bytes"] else v for k, v in row.items()}
                    yield {**record, "_file": str(path), "_line": number}
    except (pyarrow.ArrowException, OSError) as fault:
        raise ScenariumError("SCN-2006", file=path, reason=f"not Parquet: {fault}", reason_zh=f"不是有效的 Parquet：{fault}") from None


def read_npz(path: Path) -> Iterator[Record]:
    """Rows of NumPy arrays of one length: ``images``/``labels``, or ``train_images`` … as MedMNIST has them. No pickles."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError) as fault:
        raise ScenariumError("SCN-2006", file=path, reason=f"not NPZ without pickles: {fault}", reason_zh=f"不是不含 pickle 的 NPZ：{fault}") from None
    splits: dict[str | None, dict[str, Any]] = {}
    for name, array in arrays.items():
        head, _, rest = name.partition("_")
        split, column = (head, rest) if head in ("train", "val", "test") and rest else (None, name)
        splits.setdefault(split, {})[{"images": "image", "labels": "label"}.get(column, column)] = array
    for split, columns in splits.items():
        lengths = {len(array) for array in columns.values()}
        if len(lengths) != 1:
            raise ScenariumError("SCN-2006", file=path, reason=f"arrays of different lengths {sorted(lengths)}", reason_zh=f"数组长度不一致 {sorted(lengths)}")
        for index in range(lengths.pop()):
            record: Record = {name: _plain(array[index]) for name, array in columns.items()}
            yield {**record, **({"_split": split} if split else {}), "_file": str(path), "_line": index + 1}


def _plain(value: Any) -> Any:
    """An array of one number as that number; larger ones stay."""
    return value.item() if value.size == 1 else value


def read_text(path: Path, findings: Findings, encoding: str | None, *, whole: bool) -> Iterator[Record]:
    """Documents of plain text: the whole file, else parts between blank lines, else (without blank lines) each line.

    A file whose lines begin with ``__label__`` is read as fastText writes it: label, space, text.
    """
    if whole:
        text = "".join(read_lines(path, findings, encoding)).strip()
        if text:
            yield {"text": text, "_file": str(path), "_line": 1}
        return
    lines = [line.rstrip("\r\n") for line in read_lines(path, findings, encoding)]
    filled = [line for line in lines if line.strip()]
    if filled and filled[0].startswith("__label__"):
        for number, line in enumerate(lines, 1):
            if line.strip():
                label, _, text = line.removeprefix("__label__").partition(" ")
                yield {"text": text, "label": label, "_file": str(path), "_line": number}
        return
    divided = len(filled) < len(lines)
    block: list[str] = []
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            block.append(line)
        if block and (not divided or not line.strip()):
            yield {"text": "\n".join(block), "_file": str(path), "_line": number - len(block) + bool(line.strip())}
            block = []
