"""The shipped utterances, and what a row of the user's own may look like."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from scenarium.core import Row

FOLDER = Path(__file__).parent / "utterances"
LANGUAGES = ("zh", "en")
HELD_OUT = 5
"""Every fifth phrasing of an intent and language is held out: no phrasing stands on both sides."""


def shipped(languages: tuple[str, ...] = LANGUAGES) -> list[Row]:
    """Rows ``text``, ``intent``, ``language`` of the files ``utterances/<language>.txt``: ``[intent]``, then one phrasing a line."""
    rows: list[Row] = []
    for language in languages:
        file = FOLDER / f"{language}.txt"
        intent, seen = "", defaultdict[str, int](int)
        for number, line in enumerate(file.read_text(encoding="utf8").splitlines(), 1):
            if line.startswith("["):
                intent = line.strip("[]")
                continue
            seen[intent] += 1
            split = "test" if seen[intent] % HELD_OUT == 0 else "train"
            rows.append({"text": line, "intent": intent, "language": language, "_split": split, "_file": file.name, "_line": number})
    return rows
