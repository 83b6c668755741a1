"""The report of ``scenarium data check``: the same reading as a training's, told instead of raised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scenarium.core import hookimpl
from scenarium.core.config import Settings
from scenarium.core.data_check import DataReport, check
from scenarium.core.registry import Plugin, Scenario
from scenarium.core.types import Field


class Texts:
    @hookimpl
    def fields(self) -> dict[str, Field]:
        return {"text": Field("text", "the message"), "label": Field("label", "its class"), "price": Field("number", "the price", False)}


@pytest.fixture
def report(clean: Path) -> object:
    def of(path: Path, *sets: str) -> DataReport:
        made = Scenario("trial", Plugin("trial", "trial", "scenarium-trial", "0.1.0"), Settings.read(environ={}, sets=sets, scenario="trial"))
        made.__dict__["implementation"] = Texts()
        return check(made, str(path))

    return of


def write(path: Path, *extra: str) -> Path:
    rows = [f"message of the {'abcdefghij'[n % 10]}{'klmnopqrst'[n // 10]},{'spam' if n % 3 else 'ham'},{n}" for n in range(60)]
    path.write_text("\n".join(["content,label,price", *rows, *extra]), encoding="utf8")
    return path


def test_a_good_file(report, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    found = report(write(tmp_path / "a.csv", "message of the aa,ham,", ",spam,3", "a single one,rare,5"))
    assert found.ok
    assert found.rows["read"] == 63
    assert sum(found.rows[name] for name in ("train", "val", "test")) == found.rows["used"]
    assert found.map == {"text": "content", "label": "label", "price": "price"}
    assert found.classes["rare"] == {"train": 1, "val": 0, "test": 0}
    assert found.lengths["price"] == {"shortest": 0, "median": 29, "longest": 59}
    assert {f["code"] for f in found.findings} == {"SCN-2105", "SCN-2102", "SCN-2108"}
    assert json.loads(json.dumps(found.json()))["rows"] == found.rows
    english, chinese = found.text("en"), found.text("zh")
    assert "Column 'content' is read as field 'text'" in english
    assert "列 'content' 作为字段 'text' 读取" in chinese
    assert "训练" in chinese
    assert "None" not in english


def test_errors_are_findings_with_file_and_line(report, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    found = report(write(tmp_path / "a.csv", "one, two, three, four"))
    assert not found.ok
    assert [(f["severity"], f["code"], f["places"]) for f in found.findings if f["severity"] == "error"] == [("error", "SCN-2017", ["a.csv:62"])]


def test_a_wrong_column_shows_those_there(report, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "a.csv"
    path.write_text("words,kind\nhello,x\n")
    found = report(path, 'data.map={"text": "word"}')
    assert not found.ok
    assert found.columns == ["words", "kind"]
    assert "--map text=words" in found.hints[0]["en"]
    assert "words" in found.text("en")


def test_a_missing_and_an_empty_file(report, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "empty.csv").write_text("")
    assert [f["code"] for f in report(tmp_path / "empty.csv").findings] == ["SCN-2003"]
    assert [f["code"] for f in report(tmp_path / "none.csv").findings] == ["SCN-2001"]
