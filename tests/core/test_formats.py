"""Every format in every state a user's file is in."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scenarium.core import formats
from scenarium.core.errors import ScenariumError
from scenarium.core.findings import Findings
from scenarium.core.formats import entities, images
from scenarium.core.types import Field

TEXT = {"text": Field("text", "the text"), "label": Field("label", "the class", False)}
TAGGED = {"text": Field("text", "the text"), "entities": Field("entities", "the entities")}
PICTURE = {"image": Field("image", "the image"), "label": Field("label", "the class", False), "mask": Field("mask", "the mask", False)}


def read(path: Path, fields: dict[str, Field] | None = None, encoding: str | None = None) -> tuple[list[dict[str, Any]], Findings]:
    findings = Findings()
    return formats.read(path, fields or TEXT, findings, encoding).records, findings


def codes(findings: Findings) -> list[str]:
    return [found.code for found in findings]


# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_csv_with_quotes_line_breaks_and_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ntext,label\n"one, ""two""\nthree",x\n\nfour,y\n', encoding="utf8")
    records, findings = read(path)
    assert [(r["text"], r["label"], r["_line"]) for r in records] == [('one, "two"\nthree', "x", 3), ("four", "y", 6)]
    assert codes(findings) == []


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"text{separator}label\nhello there{separator}x\n")
    assert read(path)[0][0]["label"] == "x"


def test_tsv_and_compressed_files(tmp_path: Path) -> None:
    body = b"text\tlabel\nan, apple\tx\n"
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(body))
    (tmp_path / "a.tsv.bz2").write_bytes(bz2.compress(body))
    for name in ("a.tsv.gz", "a.tsv.bz2"):
        assert read(tmp_path / name)[0][0]["text"] == "an, apple"


def test_ragged_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\none\ntwo,x,,\nthree,with comma,y\n")
    records, findings = read(path)
    assert [r["text"] for r in records] == ["one", "two"]
    assert {f.code: f.places for f in findings} == {"SCN-2017": ["a.csv:4"], "SCN-2106": ["a.csv:2"]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gbk", "gb18030"])
def test_encodings_of_chinese_text(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("内容,标签\n恭喜您中奖了，请点击链接领取,诈骗\n明天下午三点开会,正常\n".encode(encoding))
    records, findings = read(path)
    assert records[0]["内容"] == "恭喜您中奖了，请点击链接领取"
    assert records[1]["标签"] == "正常"
    assert codes(findings) == (["SCN-2101"] if encoding.startswith("gb") else [])


def test_lines_of_mixed_encodings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\n中文,a\n".encode() + "我的短信,b\n".encode("gbk") + "café crème,c\n".encode("cp1252"))
    records, findings = read(path)
    assert [r["text"] for r in records] == ["中文", "我的短信", "café crème"]
    assert {f.values["encoding"]: f.places for f in findings} == {"GB18030": ["a.csv:3"], "Windows-1252": ["a.csv:4"]}


def test_a_named_encoding_is_used_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\n繁體中文,a\n".encode("big5"))
    assert read(path, encoding="big5")[0][0]["text"] == "繁體中文"
    for encoding in ("utf-8", "no-such"):
        with pytest.raises(ScenariumError, match=encoding) as caught:
            read(path, encoding=encoding)
        assert caught.value.code == "SCN-2006"


def test_json_lines_array_and_wrapped(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b, [c]", "label": {"deep": [2]}}]
    (tmp_path / "a.jsonl").write_text("\n" + "\n\n".join(json.dumps(r) for r in rows))
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "c.json").write_text(json.dumps({"version": 1, "data": rows}))
    (tmp_path / "d.json").write_text("\n".join(json.dumps(r) for r in rows))
    assert [r["_line"] for r in read(tmp_path / "a.jsonl")[0]] == [2, 4]
    assert [r["_line"] for r in read(tmp_path / "b.json")[0]] == [2, 6]
    for name in ("a.jsonl", "b.json", "c.json", "d.json"):
        assert [{k: r[k] for k in ("text", "label")} for r in read(tmp_path / name)[0]] == rows


@pytest.mark.parametrize(("body", "line"), [('{"text": "a"}\n{"text": \n', 2), ('{"text": "a"}\n[1]\n', 2), ('[{"text": "a"},\n {"text" 1}]', 2)])
def test_broken_json_names_the_line(tmp_path: Path, body: str, line: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(body)
    with pytest.raises(ScenariumError) as caught:
        read(path)
    assert (caught.value.code, caught.value.line, caught.value.file) == ("SCN-2006", line, str(path))


def test_parquet_with_hub_images(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": [{"bytes": b"\x89PNG", "path": "a.png"}], "label": [3]})
    pq.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    records, _ = read(tmp_path, PICTURE)
    assert (records[0]["image"], records[0]["label"], records[0]["_split"]) == (b"\x89PNG", 3, "train")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ScenariumError) as caught:
        read(tmp_path / "bad.parquet")
    assert caught.value.code == "SCN-2006"


def test_npz_without_pickles(tmp_path: Path) -> None:
    arrays = {f"{split}_{kind}": np.zeros((2, 4, 4) if kind == "images" else (2, 1), np.uint8) for split in ("train", "test") for kind in ("images", "labels")}
    np.savez(tmp_path / "a.npz", **arrays)
    records, _ = read(tmp_path / "a.npz", PICTURE)
    assert [r["_split"] for r in records] == ["train", "train", "test", "test"]
    assert records[0]["image"].shape == (4, 4)
    assert records[0]["label"] == 0
    np.savez(tmp_path / "b.npz", label=np.array([{"evil": 1}], dtype=object))
    with pytest.raises(ScenariumError, match="pickle"):
        read(tmp_path / "b.npz", PICTURE)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.txt", "a.conll"])
@pytest.mark.parametrize("body", ["", "\n \n"])
def test_empty_files(tmp_path: Path, name: str, body: str) -> None:
    (tmp_path / name).write_text(body)
    with pytest.raises(ScenariumError) as caught:
        read(tmp_path / name)
    assert caught.value.code == "SCN-2003"


def test_header_only_and_damaged_archive_and_unknown_endings(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"text,label\n" + b"a,b\n" * 9999)[:-20])
    (tmp_path / "c.docx").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for name, code in {"a.csv": "SCN-2003", "b.csv.gz": "SCN-2006", "c.docx": "SCN-2004", "empty": "SCN-2004"}.items():
        with pytest.raises(ScenariumError) as caught:
            read(tmp_path / name)
        assert caught.value.code == code


# ── text ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_plain_text_by_blank_lines_by_line_and_by_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\nthree\n")
    (tmp_path / "b.txt").write_text("one\ntwo\n")
    (tmp_path / "c.txt").write_text("__label__spam buy now\n__label__ham hello\n")
    assert [(r["text"], r["_line"]) for r in read(tmp_path / "a.txt")[0]] == [("one\ntwo", 1), ("three", 5)]
    assert [(r["text"], r["_line"]) for r in read(tmp_path / "b.txt")[0]] == [("one", 1), ("two", 2)]
    assert [(r["label"], r["text"]) for r in read(tmp_path / "c.txt")[0]] == [("spam", "buy now"), ("ham", "hello")]
    folder = tmp_path / "docs"
    for label in ("sport", "politics"):
        (folder / label).mkdir(parents=True)
        (folder / label / "1.txt").write_text(f"about {label}\n\nmore")
    assert [(r["label"], r["text"]) for r in read(folder)[0]] == [("politics", "about politics\n\nmore"), ("sport", "about sport\n\nmore")]


def test_a_folder_of_files_keeps_the_publishers_split(tmp_path: Path) -> None:
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name, "label": "x"}))
    (tmp_path / "README.md").write_text("# not data")
    assert {r["text"]: r["_split"] for r in read(tmp_path)[0]} == {"train.jsonl": "train", "dev.jsonl": "val", "test.jsonl": "test"}


# ── entities ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_conll_to_offsets_in_english_and_chinese(tmp_path: Path) -> None:
    (tmp_path / "en.conll").write_text("-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\nGerman JJ B-MISC\ncall NN I-MISC\n. . O\n\n")
    (tmp_path / "zh.txt").write_text("患\tO\n者\tO\n高\tB-disease\n血\tI-disease\n压\tI-disease\n3\tO\n年\tO\n")
    record = read(tmp_path / "en.conll", TAGGED)[0][0]
    assert record["text"] == "EU rejects German call ."
    assert [(record["text"][e["start"] : e["end"]], e["label"]) for e in record["entities"]] == [("EU", "ORG"), ("German call", "MISC")]
    record = read(tmp_path / "zh.txt", TAGGED)[0][0]
    assert record["text"] == "患者高血压3年"
    assert record["entities"] == [{"start": 2, "end": 5, "label": "disease"}]


def test_tags_that_are_numbers_and_lines_without_a_tag_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"words": ["high", "fever"], "ner_tags": [0, 3]}')
    (tmp_path / "b.conll").write_text("high O\nfever\n")
    for name, place in {"a.jsonl": "a.jsonl:1", "b.conll": "b.conll:2"}.items():
        _, findings = read(tmp_path / name, TAGGED)
        assert [(f.severity, f.code, f.places) for f in findings] == [("error", "SCN-2019", [place])]


def test_tag_schemes_and_odd_sequences() -> None:
    spans = [(i, i + 1) for i in range(5)]

    def of(*tags: str) -> list[tuple[int, int, str]]:
        return [(e["start"], e["end"], e["label"]) for e in entities.from_tags(tags, spans)[0]]

    assert of("B-A", "I-A", "O", "B-A", "B-A") == [(0, 2, "A"), (3, 4, "A"), (4, 5, "A")]
    assert of("B-A", "M-A", "E-A", "S-B", "S-B") == [(0, 3, "A"), (3, 4, "B"), (4, 5, "B")]
    assert of("I-A", "I-A", "I-B", "O", "I-B") == [(0, 2, "A"), (2, 3, "B"), (4, 5, "B")]
    assert entities.from_tags(["O", "I-A"], spans)[1] is True
    assert entities.from_tags(["B-A", "I-A"], spans)[1] is False


WORD = st.text(st.sampled_from("ab1é中文字，"), min_size=1, max_size=4)


@settings(deadline=None)
@given(st.lists(st.tuples(WORD, st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"])), min_size=1, max_size=12), st.booleans())
def test_tags_to_offsets_and_back(pairs: list[tuple[str, str]], characters: bool) -> None:
    tokens = [token for token, _ in pairs]
    text, spans = entities.join(tokens, characters)
    assert [text[start:end] for start, end in spans] == tokens
    found, _ = entities.from_tags([tag for _, tag in pairs], spans)
    tags = entities.to_tags(found, spans)
    # IOB2 is a fixed point, and the entities survive the way there and back.
    assert entities.from_tags(tags, spans) == (found, False)
    assert [tag[2:] for tag in tags] == [tag[2:] for _, tag in pairs]


@pytest.mark.parametrize(
    "value",
    [
        [{"start": 3, "end": 6, "label": "disease"}],
        [[3, 6, "disease"]],
        [{"id": 1, "start_offset": 3, "end_offset": 6, "label": "disease"}],
        {"result": [{"type": "labels", "value": {"start": 3, "end": 6, "text": "高血压", "labels": ["disease"]}}]},
        [{"result": [{"value": {"start": 3, "end": 6, "text": "高血压", "labels": ["disease"]}}]}],
        {"disease": {"高血压": [[3, 5]]}},
        [{"start": 3, "end": 5, "type": "disease", "entity": "高血压"}],
        [{"start": 4, "end": 7, "label": "disease", "text": "高血压"}],
    ],
)
def test_lists_of_labelling_tools(value: object) -> None:
    text = "😀患有高血压3年"
    found, _ = entities.normalise(value, text)
    assert [(text[e["start"] : e["end"]], e["label"]) for e in found] == [("高血压", "disease")]


@pytest.mark.parametrize(
    "value", [[[3, 99, "x"]], [[3, 3, "x"]], [[-1, 2, "x"]], "free text", [{"start": 1}], [{"start": 0, "end": 2, "label": "x", "text": "nowhere"}]]
)
def test_entities_that_cannot_be_used(value: object) -> None:
    with pytest.raises(entities.EntityError):
        entities.normalise(value, "患有高血压3年")


# ── images ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def picture(path: Path, colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (colour, 10, 20)).save(path)
    return path


def test_folders_as_labels_and_splits(tmp_path: Path) -> None:
    for name in ("train/cat/1.jpg", "train/dog/1.png", "valid/cat/2.jpg", "test/dog/3.bmp", ".hidden/x/9.jpg"):
        picture(tmp_path / name)
    found = [(r["label"], r["_split"], Path(r["image"]).name) for r in read(tmp_path, PICTURE)[0]]
    assert sorted(found) == [("cat", "train", "1.jpg"), ("cat", "val", "2.jpg"), ("dog", "test", "3.bmp"), ("dog", "train", "1.png")]


def test_the_mvtec_layout_finds_its_masks(tmp_path: Path) -> None:
    for name in ("train/good/0.png", "test/good/1.png", "test/scratch/2.png", "ground_truth/scratch/2_mask.png"):
        picture(tmp_path / name)
    records = {Path(r["image"]).name: r for r in read(tmp_path, PICTURE)[0]}
    assert Path(records["2.png"]["mask"]).name == "2_mask.png"
    assert "mask" not in records["1.png"]
    assert len(records) == 3


def test_a_table_beside_the_images(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    picture(tmp_path / "images/b.jpg")
    (tmp_path / "labels.csv").write_text("file,label\nimages/a.jpg,x\nimages/b.jpg,y\n")
    assert [r["label"] for r in read(tmp_path, PICTURE)[0]] == ["x", "y"]
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "train.jsonl").write_text('{"file": "images/a.jpg", "boxes": [{"box": [1, 2, 3, 4]}]}')
    (tmp_path / "test.jsonl").write_text('{"file": "images/b.jpg", "boxes": []}')
    assert {r["file"]: r["_split"] for r in read(tmp_path, PICTURE)[0]} == {"images/a.jpg": "train", "images/b.jpg": "test"}


def test_truncated_and_false_images_are_found(tmp_path: Path) -> None:
    whole = picture(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(whole.read_bytes()[:-300])
    (tmp_path / "c.png").write_text("not a picture")
    found = images.unusable([str(whole), str(tmp_path / "b.jpg"), str(tmp_path / "c.png"), whole.read_bytes(), b"x"])
    assert sorted(found) == [1, 2, 4]
    assert "truncated" in found[1].lower()


def test_a_gbk_word_that_is_valid_utf8_is_read_as_its_file(tmp_path: Path) -> None:
    path = tmp_path / "calls.csv"
    path.write_bytes("内容,标签\nYou won a prize,诈骗\nsee you,正常\n".encode("gbk"))
    assert [record["标签"] for record in read(path)[0]] == ["诈骗", "正常"]
