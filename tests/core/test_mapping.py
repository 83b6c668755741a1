"""Columns to fields, and values to their types."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from scenarium.core import mapping
from scenarium.core.errors import ScenariumError
from scenarium.core.findings import Findings
from scenarium.core.formats import Table
from scenarium.core.types import Field

FIELDS = {"text": Field("text", "the text"), "label": Field("label", "the class")}


def table(**record: object) -> Table:
    return Table(Path("a.csv"), [{**record, "_file": "a.csv", "_line": 2}], [])


def match(given: Table, wanted: dict[str, str] | None = None, fields: dict[str, Field] = FIELDS) -> tuple[dict[str, str], Findings]:
    findings = Findings()
    return mapping.match_columns(given, fields, wanted or {}, "fraud_text", findings).columns, findings


def test_the_users_map_goes_before_equal_names_before_synonyms() -> None:
    assert match(table(text="a", content="b", label="c"), {"text": "content"})[0] == {"text": "content", "label": "label"}
    assert match(table(Text="a", LABEL="c"))[0] == {"text": "Text", "label": "LABEL"}
    columns, findings = match(table(内容="a", 类别="b", id=3))
    assert columns == {"text": "内容", "label": "类别"}
    assert [f.text("zh") for f in findings] == ["列 '内容' 作为字段 'text' 读取。", "列 '类别' 作为字段 'label' 读取。"]


def test_a_missing_column_names_those_there_and_the_nearest() -> None:
    with pytest.raises(ScenariumError, match=r"Columns of the file: txt, label\.") as caught:
        match(table(txt="a", label="b"))
    assert "--map text=txt" in caught.value.hint("en")
    with pytest.raises(ScenariumError, match="--map text=content"):
        match(table(content="a", label="b"), {"text": "contnt"})


def test_a_map_of_no_field_is_refused() -> None:
    with pytest.raises(ScenariumError) as caught:
        match(table(text="a", label="b"), {"txt": "text"})
    assert caught.value.code == "SCN-2014"


def test_two_fields_of_a_kind_are_not_guessed() -> None:
    fields = {"question": Field("text", "the question"), "answer": Field("text", "the answer")}
    with pytest.raises(ScenariumError) as caught:
        match(table(content="a", body="b"), fields=fields)
    assert caught.value.field == "question"


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("1,234.5", 1234.5),
        (" 7 ", 7.0),
        ("１２", 12.0),
        ("-1e3", -1000.0),
        ("", None),
        ("NaN", None),
        ("NULL", None),
        (float("nan"), None),
        (None, None),
        (3, 3.0),
    ],
)
def test_numbers(raw: object, value: float | None) -> None:
    assert mapping.number(raw) == value


@pytest.mark.parametrize("raw", ["abc", "inf", float("inf"), "1,2", "1_000", "12%"])
def test_no_numbers(raw: object) -> None:
    with pytest.raises(ValueError, match=r"could not convert|inf|1_000"):
        mapping.number(raw)


def test_integers_keep_all_digits() -> None:
    assert mapping.integer("9007199254740993") == 9007199254740993
    assert mapping.integer("3.0") == 3
    with pytest.raises(ValueError, match=r"3\.5"):
        mapping.integer("3.5")


@pytest.mark.parametrize(
    "raw",
    [
        "2024-01-05",
        "2024/1/5",
        "20240105",
        "2024年1月5日",
        "2024.01.05",
        "2024-01-05T08:00:00+08:00",
        1704412800,
        "1704412800",
        1704412800000,
        20240105,
        datetime(2024, 1, 5),
    ],
)
def test_times_are_utc_without_zone(raw: object) -> None:
    assert mapping.time(raw) == datetime(2024, 1, 5)


@pytest.mark.parametrize("raw", ["yesterday", "05/01/2024", "2024-13-01", "2024年"])
def test_no_times(raw: object) -> None:
    with pytest.raises(ValueError, match=raw):
        mapping.time(raw)


def test_chinese_and_slashed_times_of_day() -> None:
    assert mapping.time("2024/1/5 9:30") == datetime(2024, 1, 5, 9, 30)
    assert mapping.time("2024年1月5日 9时30分") == datetime(2024, 1, 5, 9, 30)


def rows(records: list[dict[str, Any]], fields: dict[str, Field], labels: dict[str, str] | None = None, extra: str | None = None) -> tuple[list[Any], Findings]:
    findings = Findings()
    given = Table(Path("a.csv"), [{**r, "_file": "a.csv", "_line": n} for n, r in enumerate(records, 2)], [])
    return mapping.to_rows(given, fields, {key: key for key in fields}, labels or {}, extra, findings), findings


def test_labels_are_names_and_can_be_renamed() -> None:
    made, _ = rows([{"label": raw} for raw in (1, 1.0, "1", " spam ", ["x"], True)], {"label": Field("label", "l")}, {"1": "fraud", "spam": "fraud"})
    assert [row["label"] for row in made] == ["fraud", "fraud", "fraud", "fraud", "x", "True"]


def test_rows_without_a_required_value_are_left_out_and_stated() -> None:
    made, findings = rows([{"text": "a", "label": "x"}, {"text": " ", "label": "x"}, {"text": "c", "label": None}, {"text": "d", "label": "y"}], FIELDS)
    assert [row["text"] for row in made] == ["a", "d"]
    assert {(f.severity, f.code, f.field): f.places for f in findings} == {
        ("repair", "SCN-2102", "text"): ["a.csv:3"],
        ("repair", "SCN-2102", "label"): ["a.csv:4"],
    }


def test_mostly_empty_columns_stop() -> None:
    _, findings = rows([{"text": "", "label": "x"}] * 3 + [{"text": "a", "label": "x"}] * 2, FIELDS)
    with pytest.raises(ScenariumError, match="3 of 5 rows") as caught:
        findings.raise_errors()
    assert caught.value.code == "SCN-2016"


def test_wrong_values_are_counted_with_their_lines() -> None:
    fields = {"price": Field("number", "the price"), "day": Field("time", "the day", False)}
    made, findings = rows([{"price": "1", "day": "never"}, {"price": "one"}, {"price": "inf"}, {"price": "nan"}], fields)
    assert made == [{"price": 1.0, "_file": "a.csv", "_line": 2}]
    with pytest.raises(ScenariumError, match=r"'one' is not a finite number, as the field 'price' needs \(2 such rows; first: a\.csv:3, a\.csv:4\)") as caught:
        findings.raise_errors()
    assert (caught.value.file, caught.value.line) == ("a.csv", 3)
    assert ("repair", "SCN-2117") in [(f.severity, f.code) for f in findings]


def test_images_are_found_beside_the_table_or_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"1")
    findings = Findings()
    records = [{"image": name, "_file": str(tmp_path / "a.csv"), "_line": n} for n, name in enumerate(("x.png", "y.png"), 2)]
    made = mapping.to_rows(Table(tmp_path / "a.csv", records, []), {"image": Field("image", "i")}, {"image": "image"}, {}, None, findings)
    assert [row["image"] for row in made] == [str(tmp_path / "x.png")]
    assert [(f.code, f.places) for f in findings] == [("SCN-2018", ["a.csv:3"])]


def test_json_in_a_cell_and_entities_with_renamed_labels() -> None:
    fields = {"text": Field("text", "t"), "entities": Field("entities", "e"), "extra": Field("json", "j", False)}
    records = [{"text": "fever and cough", "entities": '[[0, 5, "SYM"]]', "extra": '{"a": 1}'}, {"text": "fever", "entities": [[0, 9, "SYM"]]}]
    made, findings = rows(records, fields, {"SYM": "symptom"})
    assert made[0]["entities"] == [{"start": 0, "end": 5, "label": "symptom"}]
    assert made[0]["extra"] == {"a": 1}
    assert [(f.code, f.places) for f in findings] == [("SCN-2019", ["a.csv:3"])]
