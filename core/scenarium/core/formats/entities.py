"""Entities in text: BIO and BIOES tags, CoNLL columns, and the lists of labelling tools, to code-point offsets and back.

Offsets are those of Python strings, the end is exclusive: ``text[start:end]``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from scenarium.core.findings import Findings
from scenarium.core.formats.lines import read_lines
from scenarium.core.formats.tables import Record

Entity: TypeAlias = dict[str, Any]
"""``start``, ``end`` (int) and ``label`` (str)."""

TAG = re.compile(r"^(?:O|[BIEMSLU][-_].+)$")
WIDE = re.compile(r"[\u2e80-\u303f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]")
"""Characters that are written without spaces between words: Chinese, Japanese, full-width marks."""


def join(tokens: Sequence[str], characters: bool = False) -> tuple[str, list[tuple[int, int]]]:
    """The text of ``tokens`` and the span of each: no space beside a Chinese character, else one.

    ``characters``: the tokens are single characters, so letters of a foreign word are joined as well.
    """
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    length, before = 0, ""
    for token in tokens:
        if before and token and not characters and not WIDE.match(before[-1]) and not WIDE.match(token[0]):
            parts.append(" ")
            length += 1
        parts.append(token)
        spans.append((length, length + len(token)))
        length += len(token)
        before = token or before
    return "".join(parts), spans


def from_tags(tags: Sequence[str], spans: Sequence[tuple[int, int]]) -> tuple[list[Entity], bool]:
    """Entities of a tag sequence (IOB1, IOB2, BIOES, BMES, BILOU), read as conlleval does, and whether one began without a B.

    https://github.com/sighsmile/conlleval
    """
    entities: list[Entity] = []
    open_label: str | None = None
    odd = False
    for tag, (start, end) in zip(tags, spans, strict=False):
        mark, label = (tag[0], tag[2:]) if len(tag) > 2 else ("O", "")
        if mark == "O":
            open_label = None
            continue
        if mark in "BSU" or label != open_label:
            odd = odd or mark not in "BSU"
            entities.append({"start": start, "end": end, "label": label})
        else:
            entities[-1]["end"] = end
        open_label = None if mark in "ESLU" else label
    return entities, odd


def to_tags(entities: Sequence[Entity], spans: Sequence[tuple[int, int]]) -> list[str]:
    """IOB2 tags of tokens at ``spans``: a token that overlaps an entity belongs to it; of overlapping entities the first wins."""
    tags = ["O"] * len(spans)
    for entity in sorted(entities, key=lambda e: (e["start"], -e["end"])):
        inside = [i for i, (start, end) in enumerate(spans) if start < entity["end"] and end > entity["start"] and end > start]
        if inside and all(tags[i] == "O" for i in inside):
            for i in inside:
                tags[i] = f"I-{entity['label']}"
            tags[inside[0]] = f"B-{entity['label']}"
    return tags


TOKENS, TAGS = ("tokens", "words"), ("tags", "ner_tags", "labels")
"""Usual columns of tagged sentences."""


def untag(records: list[Record], findings: Findings) -> list[Record]:
    """Records with columns of tokens and of tags as records with ``text`` and ``entities``; others unchanged."""
    first = records[0]
    tokens, tags = (next((name for name in names if isinstance(first.get(name), list)), "") for names in (TOKENS, TAGS))
    if not tokens or not tags:
        return records
    lengths = [len(str(token)) for record in records[:100] for token in record.get(tokens) or ()]
    # Nine of ten tokens are single characters: then letters of foreign words were split too.
    characters = sum(length == 1 for length in lengths) >= 0.9 * len(lengths)
    return [_of_tokens(record, tokens, tags, characters, findings) for record in records]


def _of_tokens(record: Record, tokens: str, tags: str, characters: bool, findings: Findings) -> Record:
    given = [str(tag) for tag in record.get(tags) or ()]
    text, spans = join([str(token) for token in record.get(tokens) or ()], characters)
    odd_tag = next((tag for tag in given if not TAG.match(tag)), None)
    if odd_tag is not None:
        reason, zh = f"{odd_tag!r} is no tag such as B-name, I-name or O", f"{odd_tag!r} 不是 B-名称、I-名称 或 O 这样的标签"
        findings.add("error", "SCN-2019", record, reason=reason, reason_zh=zh)
    entities, odd = from_tags(given, spans)
    if odd or len(given) != len(spans):
        findings.add("repair", "SCN-2114", record)
    rest = {key: value for key, value in record.items() if key not in (tokens, tags)}
    return {**rest, "text": text, "entities": entities}


def read_conll(path: Path, findings: Findings, encoding: str | None) -> Iterator[Record]:
    """Sentences of a CoNLL file: a token a line, its tag in the last column, a blank line between sentences."""
    tokens: list[str] = []
    tags: list[str] = []
    first = 1
    number = 0
    for number, line in enumerate(read_lines(path, findings, encoding), 1):
        cells = line.split("\t") if "\t" in line else line.split()
        cells = [cell.strip() for cell in cells]
        if len(cells) < 2 or line.startswith(("-DOCSTART-", "# ")):
            if line.strip() and not line.startswith(("-DOCSTART-", "#")):
                findings.add("error", "SCN-2019", file=path, line=number, reason="a line without a tag", reason_zh="该行没有标签")
            if tokens:
                yield {"tokens": tokens, "tags": tags, "_file": str(path), "_line": first}
                tokens, tags = [], []
            continue
        if not tokens:
            first = number
        tokens.append(cells[0])
        tags.append(cells[-1])
    if tokens:
        yield {"tokens": tokens, "tags": tags, "_file": str(path), "_line": first}


def looks_conll(path: Path, encoding: str | None) -> bool:
    """Whether the first twenty filled lines of a text file are token and tag."""
    seen = 0
    for line in read_lines(path, Findings(), encoding):
        cells = line.split()
        if not cells or line.startswith("-DOCSTART-"):
            continue
        if len(cells) < 2 or not TAG.match(cells[-1]):
            return False
        seen += 1
        if seen == 20:
            break
    return seen > 0


class EntityError(ValueError):
    """Entities that cannot be used: the reason in English and Chinese."""

    def __init__(self, reason: str, reason_zh: str) -> None:
        super().__init__(reason)
        self.reason, self.reason_zh = reason, reason_zh


def normalise(value: Any, text: str) -> tuple[list[Entity], str | None]:
    """Entities of one row in any known writing, checked against ``text``, and how the offsets were counted if not as ours.

    Known: ``{start, end, label}``; doccano ``[start, end, label]`` and ``{start_offset, end_offset, label}``; Label Studio
    ``{"result": [{"value": {start, end, text, labels}}]}``; CLUENER ``{label: {surface: [[start, last]]}}``. Where a surface is
    given it decides: offsets may count UTF-16 units (``"utf-16"``) or name the last character (``"inclusive"``).

    Raises:
        EntityError: an unknown writing, offsets outside the text, or a surface that is not at its place.
    """
    found = [_one(raw) for raw in _flat(value)]
    for count in (None, "inclusive", "utf-16"):
        entities = [_convert(start, end, label, text, count) for start, end, label, _ in found]
        if all(_fits(e, surface, text) for e, (_, _, _, surface) in zip(entities, found, strict=True)):
            return entities, count
        if not any(surface for _, _, _, surface in found):
            break
    for start, end, label, surface in found:
        if not 0 <= start < end <= len(text):
            shown = f"{label} {start}:{end}"
            raise EntityError(f"{shown} lies outside a text of {len(text)} characters", f"{shown} 超出了长度为 {len(text)} 的文本")
        if surface and text[start:end] != surface:
            raise EntityError(f"{text[start:end]!r} stands at {start}:{end}, not {surface!r}", f"{start}:{end} 处是 {text[start:end]!r}，而不是 {surface!r}")
    return [], None


def _flat(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, dict):
        if "result" in value:
            return _flat(value["result"])
        if value and all(isinstance(inner, dict) for inner in value.values()):
            return [
                {"start": span[0], "end": span[1] + 1, "label": label, "text": surface}
                for label, surfaces in value.items()
                for surface, spans in surfaces.items()
                for span in spans
            ]
        return [value] if value else []
    if not isinstance(value, list):
        raise EntityError(f"{str(value)[:40]!r} is no list of entities", f"{str(value)[:40]!r} 不是实体列表")
    flat: list[Any] = []
    for raw in value:
        flat += _flat(raw["result"]) if isinstance(raw, dict) and "result" in raw else [raw]
    return [raw for raw in flat if not (isinstance(raw, dict) and raw.get("type") not in (None, "labels", "span") and "value" in raw)]


def _one(raw: Any) -> tuple[int, int, str, str]:
    """Start, end, label and surface (may be empty) of one written entity."""
    try:
        if isinstance(raw, list | tuple):
            return int(raw[0]), int(raw[1]), str(raw[2]), ""
        raw = raw.get("value", raw)
        start = raw["start"] if "start" in raw else raw["start_offset"] if "start_offset" in raw else raw["start_idx"]
        end = raw["end"] if "end" in raw else raw["end_offset"] if "end_offset" in raw else raw["end_idx"]
        label = next(raw[name] for name in ("label", "labels", "type", "entity_type", "entity_group", "entity_label") if raw.get(name))
        surface = raw.get("text") or raw.get("surface") or raw.get("entity") or raw.get("word") or ""
        return int(start), int(end), str(label[0] if isinstance(label, list) else label), str(surface)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, StopIteration):
        shown = str(raw)[:60]
        raise EntityError(f"{shown!r} has no start, end and label", f"{shown!r} 缺少 start、end 或 label") from None


def _convert(start: int, end: int, label: str, text: str, count: str | None) -> Entity:
    if count == "inclusive":
        end += 1
    elif count == "utf-16":
        units = text.encode("utf-16-le")
        start, end = (len(units[: 2 * at].decode("utf-16-le", "ignore")) for at in (start, end))
    return {"start": start, "end": end, "label": label}


def _fits(entity: Entity, surface: str, text: str) -> bool:
    start, end = entity["start"], entity["end"]
    return 0 <= start < end <= len(text) and (not surface or text[start:end] == surface)
