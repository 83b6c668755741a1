"""medical_ner: the conformance kit, exact offsets, windows, valid tag sequences, entity scores, the gazetteer."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scenarium_medical_ner as plugin
from scenarium.core.config import Settings
from scenarium.core.handle import Handle
from scenarium.core.kit.pytest_plugin import ScenarioConformance
from scenarium.core.registry import Registry
from scenarium.core.text import tokenize
from scenarium_medical_ner import decoding, features, gazetteer, measures, records

SMALL = ["train.epochs=8", "model.buckets=8192", "model.width=48", "train.threads=1"]
TERMS = {
    "disease": ["高血压", "糖尿病", "肺炎", "冠心病", "胃溃疡", "hypertension", "atrial fibrillation", "asthma"],
    "symptom": ["胸痛", "头晕", "咳嗽", "恶心", "chest pain", "fever", "cough"],
    "drug": ["阿司匹林", "二甲双胍", "头孢曲松", "aspirin", "warfarin", "insulin"],
    "test": ["心电图", "胸部CT", "血常规", "ECG", "chest X-ray"],
    "department": ["心内科", "呼吸科", "cardiology"],
}
RECORD = "患者因胸痛3天入院，既往有高血压病史，口服阿司匹林。"
AWKWARD = {
    "emoji": "🤒👨‍⚕️ 患者因胸痛3天入院。💊给予阿司匹林口服",
    "CRLF": "主诉：头晕\r\n\r\n诊断：1.高血压；\r\n2.糖尿病。",
    "full width": "患者　因胸痛３天入院，行ＣＴ检查，口服ａｓｐｉｒｉｎ。",
    "traditional": "患者因胸痛３天入院，既往有高血壓病史。",
    "mixed": "既往有hypertension病史3年，长期口服aspirin。ECG提示肺炎可能。",
    "combining": "cafe\u0301 fever, on aspirin",
    "beyond the basic plane": "𠮷患者因胸痛3天入院𠮷。",
}


class TestMedicalNer(ScenarioConformance):
    name = "medical_ner"


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Records of a few terms in both languages: enough to learn, quick to train."""
    rng = np.random.default_rng(seed)
    lines = Path(plugin.__file__).with_name("templates.txt").read_text(encoding="utf8").splitlines()
    sentences = [line[3:] for line in lines if line[:3] in ("zh|", "en|")]
    return [records.record(rng.choice(np.array(sentences), 2), TERMS, " ", rng) for _ in range(count)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Handle:
    """Trained through the user's-own-file path: gzipped JSON lines with offsets."""
    folder = tmp_path_factory.mktemp("ner")
    path = folder / "records.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf8") as file:
        file.write("\n".join(json.dumps(row, ensure_ascii=False) for row in rows(700)))
    settings = Settings.read(environ={"SCENARIUM_STORE": str(folder / "store")}, sets=[*SMALL, f"data.path={path}"], scenario="medical_ner")
    made = Handle(Registry(settings).scenario("medical_ner"))
    made.train()
    return made


def test_known_terms_are_found_at_their_offsets(trained: Handle) -> None:
    found = {(e["start"], e["end"], e["label"]) for e in trained.predict(text=RECORD)["entities"]}
    assert found == {(3, 5, "symptom"), (13, 16, "disease"), (21, 25, "drug")}
    assert trained.version.manifest.metrics["f1"] > 0.9


def test_report_marks_entities_in_held_out_texts(trained: Handle) -> None:
    text = (trained.version.folder / "report.html").read_text("utf8")
    assert "<mark" in text.partition("<h2>Examples / 示例")[2].partition("<h2>")[0]
    assert text.partition("<h2>Entities by label / 各类实体")[2].partition("</table>")[0].count("<tr>") > 2


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_entities_stand_where_they_say(trained: Handle, text: str) -> None:
    entities = trained.predict(text=text)["entities"]
    assert entities
    for entity in entities:
        assert text[entity["start"] : entity["end"]] == entity["text"] == entity["text"].strip() != ""
        assert 0 < entity["score"] <= 1
    assert all(a["end"] <= b["start"] for a, b in itertools.pairwise(entities))


@pytest.mark.parametrize("text", ["", " ", "\r\n\t\u3000"])
def test_nothing_stands_in_an_empty_text(trained: Handle, text: str) -> None:
    assert trained.predict(text=text) == {"entities": []}


def test_100_kilobytes_give_what_their_parts_give(trained: Handle) -> None:
    """A paragraph between neighbours is read the same wherever the windows fall."""
    text = (RECORD + "\n") * 1400
    assert len(text.encode()) > 100_000
    entities = trained.predict(text=text)["entities"]
    inner: dict[int, set[tuple[int, int, str]]] = {}
    for entity in entities:
        line, start = divmod(entity["start"], len(RECORD) + 1)
        inner.setdefault(line, set()).add((start, start + len(entity["text"]), entity["label"]))
    assert inner[0] == {(3, 5, "symptom"), (13, 16, "disease"), (21, 25, "drug")}
    assert all(inner[line] == inner[700] for line in range(5, 1395))


def test_windows_give_the_logits_of_the_whole(trained: Handle) -> None:
    runtime = trained.runtime
    tokens = tokenize("\n".join(row["text"] for row in rows(30, seed=5)))
    whole = features.ids(tokens, runtime.processor.gazetteer.marks(tokens.words), 8192)

    def forward(batch: np.ndarray) -> np.ndarray:
        return np.asarray(runtime.model({"ids": batch})["logits"])

    assert len(whole) > 600
    [joined] = decoding.run_windows([whole], 160, plugin.OVERLAP, 4, forward)
    np.testing.assert_allclose(joined, forward(whole[None])[0], atol=1e-4)


def test_a_batch_answers_as_its_members_alone(trained: Handle) -> None:
    texts = [*AWKWARD.values(), RECORD, "", "x"]
    together = trained.predict([{"text": text} for text in texts])
    for text, answer in zip(texts, together, strict=True):
        alone = trained.predict(text=text)["entities"]
        assert [(e["start"], e["end"], e["label"]) for e in answer["entities"]] == [(e["start"], e["end"], e["label"]) for e in alone]


def test_onnx_answers_as_torch_without_importing_it(trained: Handle) -> None:
    script = (
        "import json, sys\n"
        "from scenarium.core.config import Settings\nfrom scenarium.core.handle import Handle\nfrom scenarium.core.registry import Registry\n"
        "handle = Handle(Registry(Settings.read(sets=['serve.engine=onnx'], scenario='medical_ner')).scenario('medical_ner'), 1)\n"
        f"print(json.dumps(handle.predict(text={RECORD!r})))\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "SCENARIUM_STORE": str(trained.scenario.settings.store_url), "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False, encoding="utf8")
    assert done.returncode == 0, done.stderr
    for entity, own in zip(json.loads(done.stdout)["entities"], trained.predict(text=RECORD)["entities"], strict=True):
        assert entity["score"] == pytest.approx(own["score"], abs=1e-4)
        assert (entity["start"], entity["end"], entity["label"]) == (own["start"], own["end"], own["label"])


def test_a_file_of_tags_in_gbk(tmp_path: Path) -> None:
    lines = []
    for row in rows(60, seed=2):
        marks = {e["start"]: e for e in row["entities"]}
        inside: dict[str, Any] | None = None
        for at, sign in enumerate(row["text"]):
            inside = marks.get(at) or (inside if inside and at < inside["end"] else None)
            if not sign.isspace():
                lines.append(f"{sign} {'O' if inside is None else ('B-' if at == inside['start'] else 'I-') + inside['label']}")
        lines.append("")
    path = tmp_path / "病历.conll"
    path.write_bytes("\n".join(lines).encode("gb18030"))
    sets = ["train.epochs=1", "model.buckets=1024", "model.width=8", f"data.path={path}"]
    settings = Settings.read(environ={"SCENARIUM_STORE": str(tmp_path / "store")}, sets=sets, scenario="medical_ner")
    made = Handle(Registry(settings).scenario("medical_ner"))
    made.train()
    assert set(made.runtime.state["tags"]) == set(decoding.tag_names(sorted(TERMS)))


@pytest.mark.parametrize(("length", "size", "overlap"), [(1, 10, 4), (10, 10, 4), (11, 10, 4), (37, 10, 4), (1000, 256, 64)])
def test_windows_cover_every_token_once(length: int, size: int, overlap: int) -> None:
    ids = np.arange(1, length + 1, dtype=np.int32)[:, None]
    calls: list[int] = []

    def forward(batch: np.ndarray) -> np.ndarray:
        calls.append(len(batch))
        return batch.astype(np.float32)

    [joined] = decoding.run_windows([ids], size, overlap, 3, forward)
    np.testing.assert_array_equal(joined, ids)
    assert max(calls) <= 3
    assert all(end - start <= size for start, end in decoding.windows(length, size, overlap))


def test_the_best_tags_are_the_best_valid_ones() -> None:
    tags = decoding.tag_names(["x", "y"])
    rng = np.random.default_rng(0)

    def valid(sequence: tuple[int, ...]) -> bool:
        names = ["O", *(tags[tag] for tag in sequence)]
        return all(not b.startswith("I-") or a[2:] == b[2:] for a, b in itertools.pairwise(names))

    for _ in range(40):
        logits = rng.normal(size=(4, len(tags))) * 2
        sequences = [s for s in itertools.product(range(len(tags)), repeat=4) if valid(s)]
        best = max(sequences, key=lambda s: sum(logits[at, tag] for at, tag in enumerate(s)))
        assert tuple(decoding.best_tags(logits, tags)) == best


def test_neighbouring_entities_stay_two() -> None:
    tags = decoding.tag_names(["x"])
    logits = np.full((4, 3), -5.0, np.float32)
    logits[[0, 1, 2, 3], [1, 1, 2, 0]] = 5
    assert [(s.first, s.after, s.label) for s in decoding.spans(logits, tags)] == [(0, 1, "x"), (1, 3, "x")]


def test_scores_count_exact_entities() -> None:
    true = [{"entities": [{"start": 0, "end": 2, "label": "a"}, {"start": 3, "end": 5, "label": "b"}]}, {"entities": []}]
    answers = [{"entities": [{"start": 0, "end": 2, "label": "a"}, {"start": 3, "end": 6, "label": "b"}]}, {"entities": [{"start": 0, "end": 1, "label": "a"}]}]
    assert measures.entity_scores(true, answers) == pytest.approx({"f1": 2 / 5, "precision": 1 / 3, "recall": 1 / 2, "macro_f1": (2 / 3 + 0) / 2})
    assert measures.entity_scores([{"entities": []}], [{"entities": []}])["f1"] == 0
    assert measures.counts(true, answers) == {"a": [1, 2, 1], "b": [0, 1, 1]}


def test_the_gazetteer_takes_the_longest_match() -> None:
    text = "atrial fibrillation and Fibrillation"
    known = [{"text": text, "entities": [{"start": 0, "end": 19, "label": "disease"}, {"start": 24, "end": 36, "label": "symptom"}]}]
    terms = gazetteer.Gazetteer.collect(known)
    assert json.loads(json.dumps(terms)) == terms
    found = gazetteer.Gazetteer(terms).entities("ATRIAL fibrillation, fibrillation")
    assert [(e["start"], e["end"], e["label"]) for e in found] == [(0, 19, "disease"), (21, 33, "symptom")]
    assert gazetteer.Gazetteer({}).entities("fever") == []


def test_a_training_row_is_not_told_what_only_it_marks() -> None:
    once, twice = {"start": 0, "end": 5, "label": "a"}, {"start": 6, "end": 11, "label": "b"}
    known = [{"text": "fever cough", "entities": [once, twice]}, {"text": "      cough", "entities": [twice]}]
    dictionary = gazetteer.Gazetteer(gazetteer.Gazetteer.collect(known))
    assert dictionary.marks(["Fever", "cough"]) == ["B-a", "B-b"]
    assert dictionary.marks(["Fever", "cough"], least=2) == ["O", "B-b"]


def test_generated_records_hold_out_terms() -> None:
    many = {label: [f"{label}词{number}号" for number in range(60)] for label in TERMS}
    made = records.generate("zh", many)
    seen: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for row in made:
        for entity in row["entities"]:
            term = row["text"][entity["start"] : entity["end"]]
            assert term.startswith(entity["label"])
            if entity["label"] != "department":
                seen[row["_split"]].add(term)
    assert all(seen.values())
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["val"]
    assert records.generate("zh", many) == made


def test_dictionaries_become_terms(tmp_path: Path) -> None:
    for name in records.DICTIONARIES:
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{a}{b}病" for a in "甲乙丙丁戊己" for b in "子丑寅卯辰巳午未") + "\nDNA测定(PCR)\n", encoding="utf8")
    made = records.read_chinese([tmp_path])
    assert not any("PCR" in row["text"] for row in made)
    names = [(code, number, f"Chronic {a} {b}") for code in "JR" for number, (a, b) in enumerate(itertools.product("abcdefg", "hijklm"))]
    xml = "".join(f"<diag><name>{code}{number}</name><desc>{name}</desc></diag>" for code, number, name in names)
    path = tmp_path / "icd.xml"
    path.write_text(f"<x>{xml}<diag><name>J99</name><desc>Other unspecified thing</desc></diag></x>", encoding="utf8")
    english = records.read_english([path])
    assert not any("unspecified" in row["text"].lower() for row in english)
    assert {e["label"] for row in english for e in row["entities"]} == {"disease", "symptom", "drug", "test"}
