"""Equal rows: what counts as equal, and which one stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scenarium.core import duplicates
from scenarium.core.findings import Findings
from scenarium.core.types import Field, Row

TEXT = {"text": Field("text", "t"), "label": Field("label", "l")}
TABLE = {"a": Field("number", "a"), "outcome": Field("label", "o")}


def kept(rows: list[Row], fields: dict[str, Field]) -> tuple[list[Row], list[tuple[str, int]]]:
    findings = Findings()
    left, identities = duplicates.drop(rows, duplicates.identify(rows, fields), findings)
    assert len(left) == len(identities)
    return left, [(found.code, found.count) for found in findings]


def test_width_case_and_spaces_make_no_other_text() -> None:
    rows: list[Row] = [{"text": "Ｆree  MONEY", "label": "a"}, {"text": "free money", "label": "a"}, {"text": "free money!", "label": "a"}]
    assert kept(rows, TEXT) == ([rows[0], rows[2]], [("SCN-2103", 1)])


def test_the_test_row_stays_and_the_most_frequent_label() -> None:
    rows: list[Row] = [
        {"text": "x", "label": "a", "_split": "train"},
        {"text": "x", "label": "b", "_split": "train"},
        {"text": "x", "label": "b", "_split": "test"},
    ]
    assert kept(rows, TEXT) == ([rows[2]], [("SCN-2104", 1), ("SCN-2103", 2)])


def test_equal_measurements_with_other_outcomes_are_no_duplicates() -> None:
    rows: list[Row] = [{"a": 1.0, "outcome": "x"}, {"a": 1.0, "outcome": "y"}, {"a": 1.0, "outcome": "x"}]
    assert kept(rows, TABLE) == (rows[:2], [("SCN-2103", 1)])


def test_images_are_compared_by_content_in_every_form(clean: Path) -> None:
    (clean / "a.png").write_bytes(b"same")
    (clean / "b.png").write_bytes(b"same")
    pixels = np.zeros((2, 2), np.uint8)
    images: list[object] = [str(clean / "a.png"), str(clean / "b.png"), b"same", pixels, pixels.copy()]
    rows: list[Row] = [{"image": image} for image in images]
    left, _ = kept(rows, {"image": Field("image", "i")})
    assert [id(row) for row in left] == [id(rows[0]), id(rows[3])]
