"""Splits: stable, disjoint, complete; and what leaks."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarium.core import splits
from scenarium.core.config import DataConfig
from scenarium.core.errors import ScenariumError
from scenarium.core.findings import Findings
from scenarium.core.types import Field, Row

FIELDS = {"text": Field("text", "t"), "label": Field("label", "l")}


def label(row: Row) -> list[str]:
    return [row["label"]] if "label" in row else []


def divide(rows: list[Row], keys: list[str], **settings: object) -> list[str]:
    return list(splits.divide(rows, keys, DataConfig.model_validate(settings), Findings(), label))


KEYS = st.lists(st.text(max_size=8), min_size=1, max_size=300)


@settings(max_examples=40, deadline=None)
@given(KEYS, KEYS)
def test_new_rows_never_move_old_ones(old: list[str], new: list[str]) -> None:
    # A hundred fixed rows: large enough that no split is empty, so the exceptions for small data do not apply.
    base = [f"row {n}" for n in range(100)]
    before = divide([{} for _ in base + old], base + old)
    after = divide([{} for _ in base + old + new], base + old + new)
    assert after[: len(before)] == before


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=5), st.sampled_from("abc")), min_size=3, max_size=60))
def test_every_class_is_trained_on_and_keys_stay_together(pairs: list[tuple[str, str]]) -> None:
    rows: list[Row] = [{"label": name} for _, name in pairs]
    keys = [key for key, _ in pairs]
    found = divide(rows, keys)
    assert {name for (_, name), split in zip(pairs, found, strict=True) if split == "train"} == {name for _, name in pairs}
    assert len(set(zip(keys, found, strict=True))) == len(set(keys))


def test_shares_come_out_right() -> None:
    keys = [f"row {n}" for n in range(20_000)]
    found = divide([{} for _ in keys], keys, val=0.1, test=0.2)
    assert [round(found.count(name) / len(found), 2) for name in ("train", "val", "test")] == [0.7, 0.1, 0.2]


def test_small_data_fills_every_split() -> None:
    for count in range(3, 12):
        found = divide([{} for _ in range(count)], [f"row {n}" for n in range(count)])
        assert set(found) == {"train", "val", "test"}


def test_the_publishers_split_is_kept_and_only_what_is_missing_is_taken_from_train() -> None:
    rows: list[Row] = [{"_split": "train"}] * 500 + [{"_split": "test"}] * 50
    found = divide(rows, [str(n) for n in range(550)])
    assert found[500:] == ["test"] * 50
    assert "test" not in found[:500]
    assert 20 < found[:500].count("val") < 90
    rows = [{"_split": "train"}] * 500 + [{"_split": "val"}] * 50
    found = divide(rows, [str(n) for n in range(550)])
    assert found[500:] == ["val"] * 50
    assert "val" not in found[:500]
    assert 60 < found[:500].count("test") < 150


def test_each_source_has_its_own_publisher() -> None:
    rows: list[Row] = [{"_part": 0, "_split": "train"}] * 300 + [{"_part": 0, "_split": "test"}] * 30 + [{"_part": 1}] * 300
    found = divide(rows, [str(n) for n in range(630)])
    assert "test" not in found[:300]
    assert 30 < found[330:].count("test") < 100


def test_time_holds_out_the_latest_and_never_parts_a_moment() -> None:
    start = datetime(2024, 1, 1)
    rows: list[Row] = [{"_key": start + timedelta(days=n // 3)} for n in range(300)]
    found = divide(rows[::-1], [""] * 300, split="time:day", val=0.1, test=0.2)[::-1]
    assert found == sorted(found, key=["train", "val", "test"].index)
    assert found.count("test") == 60
    assert found.count("val") == 30
    by_day: dict[datetime, set[str]] = {}
    for row, name in zip(rows, found, strict=True):
        by_day.setdefault(row["_key"], set()).add(name)
    assert all(len(names) == 1 for names in by_day.values())


@pytest.mark.parametrize("rule", ["rnd", "time:", "group", "random:x", "time:none", "week:text"])
def test_rules_that_cannot_be_used_name_the_columns(rule: str) -> None:
    with pytest.raises(ScenariumError, match="text, label") as caught:
        splits.parse_rule(rule, ["text", "label"])
    assert caught.value.code == "SCN-2008"


def test_skeletons() -> None:
    assert splits.skeleton("Win £1000 NOW!! call 0871-277") == splits.skeleton("win £9 now, call 1234-5")
    assert splits.skeleton("ＡＢＣ 你好") == splits.skeleton("abc你好！")
    assert splits.skeleton("!!!") != splits.skeleton("???")


def test_leaks_are_found() -> None:
    findings = Findings()
    moment = datetime(2024, 1, 1)
    train: list[Row] = [{"text": "call 0871 now", "_group": "a", "_key": moment + timedelta(days=9), "_file": "f", "_line": 1}]
    test: list[Row] = [{"text": "Call 0999, now!", "_group": "a", "_key": moment, "_file": "f", "_line": 2}]
    splits.find_leaks({"train": train, "val": [], "test": test}, FIELDS, DataConfig(split="time:day"), findings)
    assert [(f.code, f.count) for f in findings] == [("SCN-2109", 1), ("SCN-2110", 1), ("SCN-2111", 1)]
    clean = Findings()
    test[0] |= {"text": "something else", "_group": "b", "_key": moment + timedelta(days=20)}
    splits.find_leaks({"train": train, "val": [], "test": test}, FIELDS, DataConfig(split="time:day"), clean)
    assert list(clean) == []
