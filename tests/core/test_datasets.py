"""From files and sources to a split data set and its manifest, and back to the files by ``verify``."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scenarium.core import datasets, hookimpl
from scenarium.core.config import Settings
from scenarium.core.errors import ScenariumError
from scenarium.core.progress import Progress
from scenarium.core.registry import Plugin, Scenario
from scenarium.core.types import Field, Row, Source

REAL = Path(os.environ.get("SCENARIUM_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the labelled trial data are not here")

TEXT = {"text": Field("text", "the text"), "label": Field("label", "the class")}
TAGGED = {"text": Field("text", "the text"), "entities": Field("entities", "the entities")}
PICTURE = {"image": Field("image", "the image"), "label": Field("label", "the class"), "mask": Field("mask", "the defect", False)}


class Offer:
    """A plugin's data hooks."""

    def __init__(self, fields: dict[str, Field], sources: Sequence[Source]) -> None:
        self._fields, self._sources = fields, sources

    @hookimpl
    def fields(self) -> dict[str, Field]:
        return self._fields

    @hookimpl
    def sources(self) -> Sequence[Source]:
        return self._sources


Make = Callable[..., Scenario]


@pytest.fixture
def make(clean: Path) -> Make:
    """A scenario of given fields, settings and sources, with caches below the test's own folder."""

    def scenario(fields: dict[str, Field], path: Path | str | None = None, sources: Sequence[Source] = (), **data: Any) -> Scenario:
        given = data | ({"path": str(path)} if path else {})
        sets = [f"data.{key}={json.dumps(value)}" for key, value in given.items()]
        made = Scenario("trial", Plugin("trial", "trial", "scenarium-trial", "0.1.0"), Settings.read(environ={}, sets=sets, scenario="trial"))
        made.__dict__["implementation"] = Offer(fields, sources)
        return made

    return scenario


class Notes(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf8")
    return path


WORDS = ("sun", "moon", "river", "stone", "tree", "cloud", "bird", "road", "house", "lamp")


def words(number: int) -> str:
    """A text of its own for each number, without digits."""
    return " ".join(WORDS[int(digit)] for digit in str(number))


def test_a_gbk_file_with_chinese_headers_and_a_map(make: Make, tmp_path: Path) -> None:
    lines = ["内容,标签"] + [f"第{words(n)}条消息{'中奖' if n % 2 else '开会'},{'诈骗' if n % 2 else '正常'}" for n in range(200)]
    path = tmp_path / "我的.csv"
    path.write_bytes("\n".join(lines).encode("gbk"))
    notes = Notes()
    data = datasets.prepare(make(TEXT, path, map={"text": "内容", "label": "标签"}, map_label={"诈骗": "fraud", "正常": "normal"}), notes)
    assert len(data.train) + len(data.val) + len(data.test) == 200
    assert {row["label"] for row in data.train} == {"fraud", "normal"}
    assert data.train[0]["_file"] == str(path)
    assert data.origin == "real"
    assert any("GB18030" in said and "我的.csv:1" in said for said in notes.said)
    assert data.manifest["sources"][0]["map"] == {"text": "内容", "label": "标签"}


def test_duplicates_go_before_the_split_and_conflicts_are_told(make: Make, tmp_path: Path) -> None:
    rows = [{"text": words(n), "label": "ab"[n % 2]} for n in range(100)]
    rows += [{"text": words(3).upper() + "  ", "label": "b"}, {"text": words(4), "label": "b"}, {"text": words(4), "label": "a"}]
    prepared = datasets.assemble(make(TEXT, write_rows(tmp_path / "a.jsonl", rows)), Progress(), found := datasets.Findings())
    assert prepared.data.manifest["rows"] == {"read": 103, "used": 100}
    assert {f.code: (f.count, f.places) for f in found} == {"SCN-2103": (3, ["a.jsonl:101", "a.jsonl:102", "a.jsonl:103"]), "SCN-2104": (1, ["a.jsonl:5"])}
    texts = [{splits_text(row) for row in prepared.data.rows(name)} for name in datasets.SPLITS]
    assert sum(map(len, texts)) == len(set().union(*texts))
    kept = next(row for name in datasets.SPLITS for row in prepared.data.rows(name) if row["text"] == words(4))
    assert kept["label"] == "a"


def splits_text(row: Row) -> str:
    return datasets.splits.skeleton(row["text"])


def test_near_identical_texts_never_straddle_a_random_split(make: Make, tmp_path: Path) -> None:
    rows = [{"text": f"{words(n % 40)} call {n} now", "label": "ab"[n % 2]} for n in range(400)]
    data = datasets.prepare(make(TEXT, write_rows(tmp_path / "a.jsonl", rows)), Progress())
    train, test = ({splits_text(row) for row in rows} for rows in (data.train, data.test))
    assert test
    assert not train & test


def test_a_group_is_never_torn_apart_and_a_limit_is_kept(make: Make, tmp_path: Path) -> None:
    rows = [{"text": words(n), "label": "ab"[n % 2], "patient": f"p{n % 30}"} for n in range(600)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    data = datasets.prepare(make(TEXT, path, split="group:patient"), Progress())
    groups = [{row["_group"] for row in data.rows(name)} for name in datasets.SPLITS]
    assert sum(map(len, groups)) == 30
    assert set().union(*groups) == {f"p{n}" for n in range(30)}
    small = datasets.prepare(make(TEXT, path, limit=50), Progress())
    assert small.manifest["rows"]["used"] == 50
    assert {row["text"] for row in small.test} <= {row["text"] for row in datasets.prepare(make(TEXT, path), Progress()).test}


def test_a_limit_takes_pictures_of_every_class_alike(make: Make) -> None:
    def read(paths: Sequence[Path]) -> list[Row]:
        rng = np.random.default_rng(0)
        borders = [np.pad(rng.integers(1, 255, (20, 20), dtype=np.uint8), 4) for _ in range(400)]  # all begin with the same dark rows
        return [{"image": picture, "label": "ab"[n % 2]} for n, picture in enumerate(borders)]

    data = datasets.prepare(make(PICTURE, sources=[Source("pictures", "generated", "CC0-1.0", read)], limit=100), Progress())
    labels = [row["label"] for row in (*data.train, *data.val, *data.test)]
    assert len(labels) == 100
    assert 30 <= labels.count("a") <= 70


def test_a_time_split_and_a_bad_time(make: Make, tmp_path: Path) -> None:
    fields = {"value": Field("number", "v"), "time": Field("time", "t")}
    lines = ["time,value"] + [f"2024-01-{1 + n // 24:02d} {n % 24:02d}:00,{n}" for n in range(480)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(lines))
    data = datasets.prepare(make(fields, path, split="time:time"), Progress())
    assert max(row["time"] for row in data.train) < min(row["time"] for row in data.val)
    assert max(row["time"] for row in data.val) < min(row["time"] for row in data.test)
    path.write_text("\n".join([*lines, "tomorrow,1"]))
    with pytest.raises(ScenariumError, match="'tomorrow' is not a date or time") as caught:
        datasets.prepare(make(fields, path, split="time:time"), Progress())
    assert (caught.value.file, caught.value.line) == (str(path), 482)


def test_the_users_own_test_file(make: Make, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", [{"text": words(n), "label": "ab"[n % 2]} for n in range(100)])
    test = write_rows(tmp_path / "test.jsonl", [{"text": words(n), "label": "ab"[n % 2]} for n in range(90, 130)])
    data = datasets.prepare(make(TEXT, train, test_path=str(test)), Progress())
    assert {row["text"] for row in data.test} == {words(n) for n in range(90, 130)}
    # What stands in both goes from train, so nothing that is measured was trained on.
    assert not {row["text"] for row in data.train + data.val} & {row["text"] for row in data.test}
    assert len(data.train) + len(data.val) == 90


def test_small_and_one_sided_data(make: Make, tmp_path: Path) -> None:
    rows = [{"text": words(n), "label": "a"} for n in range(40)] + [{"text": "only one", "label": "rare"}]
    prepared = datasets.assemble(make(TEXT, write_rows(tmp_path / "a.jsonl", rows)), Progress(), found := datasets.Findings())
    assert [f.values["value"] for f in found if f.code == "SCN-2108"] == ["rare"]
    assert "rare" in {row["label"] for row in prepared.data.train}
    with pytest.raises(ScenariumError) as caught:
        datasets.prepare(make(TEXT, write_rows(tmp_path / "b.jsonl", rows[:1])), Progress())
    assert caught.value.code == "SCN-2009"


def test_exports_of_labelling_tools(make: Make, tmp_path: Path) -> None:
    texts = [f"患者有高血压{words(n)}" for n in range(30)]
    doccano = [{"id": n, "text": text, "label": [[3, 6, "disease"]]} for n, text in enumerate(texts)]
    value = {"start": 3, "end": 6, "text": "高血压", "labels": ["disease"]}
    studio = [{"id": n, "data": {"text": text}, "annotations": [{"result": [{"type": "labels", "value": value}]}]} for n, text in enumerate(texts)]
    (tmp_path / "studio.json").write_text(json.dumps(studio, ensure_ascii=False), encoding="utf8")
    for path in (write_rows(tmp_path / "doccano.jsonl", doccano), tmp_path / "studio.json"):
        data = datasets.prepare(make(TAGGED, path), Progress())
        assert data.manifest["rows"]["used"] == 30
        assert all(row["entities"] == [{"start": 3, "end": 6, "label": "disease"}] for row in data.train)


# ── sources ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def rows_of(start: int, count: int) -> Callable[[list[Path]], list[Row]]:
    return lambda paths: [{"text": words(n), "label": "ab"[n % 2], "extra": n} for n in range(start, start + count)]


def test_free_sources_are_joined_and_others_need_consent(make: Make) -> None:
    offered = [
        Source("mails", "real", "CC0", rows_of(0, 100)),
        Source("talk", "generated", "CC0", rows_of(100, 100)),
        Source("closed", "real", "research only", rows_of(200, 100), free=False),
    ]
    notes = Notes()
    data = datasets.prepare(make(TEXT, sources=offered), notes)
    assert data.manifest["rows"]["used"] == 200
    assert data.origin == "real parts, generated"
    assert any("'closed' is left out" in said for said in notes.said)
    more = datasets.prepare(make(TEXT, sources=offered, accept_licence=["closed"]), Progress())
    assert more.manifest["rows"]["used"] == 300
    assert [(s["name"], s["licence"]) for s in more.manifest["sources"]][2] == ("closed", "research only")
    with pytest.raises(ScenariumError, match="closed") as caught:
        datasets.prepare(make(TEXT, sources=offered[2:]), Progress())
    assert caught.value.code == "SCN-2002"


def test_origins_combined() -> None:
    assert datasets.combined_origin(["real", "real"]) == "real"
    assert datasets.combined_origin(["real", "simulated"]) == "real parts, generated"
    assert datasets.combined_origin(["simulated", "generated"]) == "generated"


# ── images ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def photo(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    return path


def test_an_image_folder_and_the_file_that_changed(make: Make, tmp_path: Path) -> None:
    root = tmp_path / "parts"
    for n in range(40):
        photo(root / ("good" if n % 2 else "scratch") / f"{n}.png", n)
    photo(root / "good" / "copy.png", 3)
    broken = root / "good" / "broken.png"
    broken.write_bytes(photo(root / "good" / "x.png", 99).read_bytes()[:200])
    notes = Notes()
    data = datasets.prepare(make(PICTURE, root), notes)
    assert data.manifest["rows"] == {"read": 43, "used": 41}
    assert any("broken.png" in said for said in notes.said)
    assert data.manifest["splits"]["train"]["classes"].keys() == {"good", "scratch"}
    manifest = json.loads(json.dumps(data.manifest))
    assert datasets.verify(manifest) == []
    photo(root / "good" / "1.png", 1000)
    (root / "good" / "5.png").unlink()
    photo(root / "scratch" / "new.png", 1001)
    assert {(d.path, d.kind) for d in datasets.verify(manifest)} == {("good/1.png", "changed"), ("good/5.png", "missing"), ("scratch/new.png", "added")}


def test_too_many_broken_images_stop(make: Make, tmp_path: Path) -> None:
    for n in range(10):
        path = photo(tmp_path / "parts" / "ab"[n % 2] / f"{n}.png", n)
        if n < 3:
            path.write_bytes(b"no image")
    with pytest.raises(ScenariumError, match="3 of 10 images") as caught:
        datasets.prepare(make(PICTURE, tmp_path / "parts"), Progress())
    assert caught.value.code == "SCN-2015"


# ── manifest ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_whole_hash_follows_the_rows_and_not_the_place(make: Make, tmp_path: Path) -> None:
    rows = [{"text": words(n), "label": "ab"[n % 2]} for n in range(60)]
    first = write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "elsewhere").mkdir()
    second = write_rows(tmp_path / "elsewhere" / "b.jsonl", rows[::-1])
    one, two = (datasets.prepare(make(TEXT, path), Progress()).manifest for path in (first, second))
    assert one["sha256"] == two["sha256"]
    rows[7]["label"] = "a" if rows[7]["label"] == "b" else "b"
    assert datasets.prepare(make(TEXT, write_rows(first, rows)), Progress()).manifest["sha256"] != one["sha256"]
    assert [(d.path, d.kind) for d in datasets.verify(one)] == [("a.jsonl", "changed")]
    first.unlink()
    assert [d.kind for d in datasets.verify(one)] == ["missing"]


def test_a_hundred_thousand_rows(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "big.csv"
    path.write_text("text,label\n" + "".join(f"{words(n)} and {words(n * 7)},{n % 5}\n" for n in range(100_000)))
    began = time.monotonic()
    data = datasets.prepare(make(TEXT, path), Progress())
    with capsys.disabled():
        print(f"\n100,000 rows of CSV prepared in {time.monotonic() - began:.1f} s")
    assert data.manifest["rows"]["read"] == 100_000


def test_the_hashes_of_many_files_are_remembered(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "many" / f"{n % 100}" / f"{n}.txt" for n in range(3_000)]
    for folder in {path.parent for path in files}:
        folder.mkdir(parents=True)
    found = []
    for text in ("1", "2"):  # of the same size and time, so a file that is read again gives another hash
        for path in files:
            path.write_bytes(text.encode() * 100)
            os.utime(path, (1000, 1000))
        began = time.monotonic()
        found.append(datasets.HashMemory().many(files))
        with capsys.disabled():
            print(f"\n3,000 files {'looked up' if found[1:] else 'hashed'} in {time.monotonic() - began:.2f} s")
    assert found[0] == found[1] == [hashlib.sha256(b"1" * 100).hexdigest()] * 3_000


# ── real data ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@real_data
@pytest.mark.parametrize(
    ("name", "fields", "read", "classes"),
    [
        ("sms_spam_en/train.jsonl.gz", TEXT, 3882, 2),
        ("telecom_fraud_zh/train.jsonl.gz", TEXT, 8662, 5),
        ("banking77/train.jsonl.gz", TEXT, 9993, 77),
        ("zh_medqa_ner", TAGGED, 1846, 11),
        ("neu_surface_defects", PICTURE, 1350, 6),
    ],
)
def test_real_sets(make: Make, name: str, fields: dict[str, Field], read: int, classes: int) -> None:
    data = datasets.prepare(make(fields, REAL / name), Progress())
    assert data.manifest["rows"]["read"] == read
    assert len(data.manifest["splits"]["train"]["classes"]) == classes
    assert datasets.verify(data.manifest) == []


@real_data
def test_real_entities_stand_where_the_tags_say(make: Make) -> None:
    data = datasets.prepare(make(TAGGED, REAL / "bc5cdr_ner", limit=2000), Progress())
    assert data.manifest["splits"]["train"]["classes"].keys() == {"Chemical", "Disease"}
    found = {row["text"][e["start"] : e["end"]] for row in data.train + data.val + data.test for e in row["entities"] if e["label"] == "Disease"}
    assert "hypotension" in found


@real_data
def test_real_tiles_are_kept_together_with_their_masks(make: Make) -> None:
    data = datasets.prepare(make(PICTURE, REAL / "magnetic_tile_defects", split="group:tile"), Progress())
    groups = [{row["_group"] for row in data.rows(name)} for name in datasets.SPLITS]
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert sum("mask" in row for name in datasets.SPLITS for row in data.rows(name)) == 300
