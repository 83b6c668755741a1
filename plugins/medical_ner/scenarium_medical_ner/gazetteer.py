"""A dictionary of the entities of the training rows: the baseline, and one of the tagger's features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scenarium.core.text import normal, tokenize
from scenarium.core.types import Row

BETWEEN = "\x1f"
"""Stands between the words of a term; a control character that is part of no word."""


class Match(NamedTuple):
    """A term of the dictionary over tokens: first, one after the last, label."""

    first: int
    after: int
    label: str


class Gazetteer:
    """Terms by their words; the longest one that stands at a token wins."""

    def __init__(self, terms: Mapping[str, Sequence[Any]]) -> None:
        self.terms = {tuple(words.split(BETWEEN)): (str(label), int(rows)) for words, (label, rows) in terms.items()}
        self.longest = max(map(len, self.terms), default=0)

    @staticmethod
    def collect(rows: Sequence[Row]) -> dict[str, list[Any]]:
        """Each term of ``rows`` with its commonest label and the number of rows that it is marked in: JSON values."""
        seen: dict[str, Counter[str]] = {}
        for row in rows:
            marked = set()
            for entity in row["entities"]:
                words = BETWEEN.join(map(normal, tokenize(row["text"][entity["start"] : entity["end"]]).words))
                if words and (words, entity["label"]) not in marked:
                    marked.add((words, entity["label"]))
                    seen.setdefault(words, Counter())[entity["label"]] += 1
        return {words: [labels.most_common(1)[0][0], labels.total()] for words, labels in sorted(seen.items())}

    def matches(self, words: Sequence[str], least: int = 1) -> list[Match]:
        """The terms among ``words`` (as written), from left to right.

        ``least``: 2 leaves out what was marked in one row alone. A training row is read so, or every entity in it would be
        known and the tagger would learn to trust the dictionary blindly.
        """
        words = [normal(word) for word in words]
        found, at = [], 0
        while at < len(words):
            for length in range(min(self.longest, len(words) - at), 0, -1):
                label, rows = self.terms.get(tuple(words[at : at + length]), ("", 0))
                if rows >= least:
                    found.append(Match(at, at + length, label))
                    at += length - 1
                    break
            at += 1
        return found

    def entities(self, text: str) -> list[dict[str, Any]]:
        """The dictionary's entities in ``text``."""
        tokens = tokenize(text)
        return [{"start": int(tokens.spans[m.first, 0]), "end": int(tokens.spans[m.after - 1, 1]), "label": m.label} for m in self.matches(tokens.words)]

    def marks(self, words: Sequence[str], least: int = 1) -> list[str]:
        """``B-label``, ``I-label`` or ``O`` of each token."""
        found = ["O"] * len(words)
        for match in self.matches(words, least):
            found[match.first : match.after] = [f"B-{match.label}", *[f"I-{match.label}"] * (match.after - match.first - 1)]
        return found
