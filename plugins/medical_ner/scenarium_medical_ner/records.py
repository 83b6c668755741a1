"""Generated records: sentences with real terms of diseases, symptoms, drugs, tests and departments, Chinese and English.

The terms are real, the sentences are ours. Terms are held out: none of those in the test rows occurs in training (departments, of
which there are few, are shared), so a score shows that unseen terms are read. The sentences are shared: a score says little about
real records, whose language is far richer.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree  # the file is known by its hash

import numpy as np

from scenarium.core.sources import PackageFile
from scenarium.core.types import Row, Source

CHINESE = PackageFile("Huatuo", "0.1.5", "Huatuo/data/dict/*.txt", "d2fa8802a848c5a414084e16a1b923f1d834c11c9eca72883bba25c65923b55d", "MIT")
ENGLISH = PackageFile(
    "simple-icd-10-cm",
    "1.5.0",
    "simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml",
    "f161f8182aff3ce3a2a78e202f8259c08eaee2c670a9e45b0072445c52302935",
    "MIT",
)
DICTIONARIES = {"disease": "disease", "symptom": "symptom", "drug": "drug", "check": "test", "department": "department"}
"""File of the Chinese dictionaries to label."""
PLAIN = re.compile(r"[\u4e00-\u9fff]{2,12}")
VAGUE = re.compile(r"unspecified|other|specified|without|abnormal|elsewhere|encounter|status|score|[,\[(0-9]", re.IGNORECASE)
"""What no doctor would write in a sentence."""
ROWS = {"train": 2400, "val": 250, "test": 500}
"""Records of each language."""

Terms = dict[str, list[str]]


def sources() -> Sequence[Source]:
    """One source a language."""
    doc = "our own sentences around real terms; the terms of the test rows are held out"
    return [
        Source("records-zh", "real parts, generated", "MIT (Huatuo dictionaries), Apache-2.0 (sentences)", read_chinese, (CHINESE,), doc=doc),
        Source("records-en", "real parts, generated", "MIT (simple-icd-10-cm; ICD-10-CM itself: public domain), Apache-2.0", read_english, (ENGLISH,), doc=doc),
    ]


def read_chinese(paths: list[Path]) -> Sequence[Row]:
    """Records around the dictionaries' terms that are written in 2 to 12 Han characters."""
    terms: Terms = {}
    for name, label in DICTIONARIES.items():
        path = next(paths[0].rglob(f"{name}.txt"))
        terms[label] = sorted({line.strip() for line in path.read_text(encoding="utf8").splitlines() if PLAIN.fullmatch(line.strip())})
    return generate("zh", terms)


def read_english(paths: list[Path]) -> Sequence[Row]:
    """Records around the names of ICD-10-CM (chapters A to N diseases, R symptoms) and our lists of drugs and tests."""
    terms = own_terms() | {"disease": [], "symptom": []}
    for entry in ElementTree.parse(paths[0]).iter("diag"):
        code, name = entry.findtext("name") or "", entry.findtext("desc") or ""
        if len(name.split()) <= 4 and not VAGUE.search(name):
            kind = "disease" if code[:1] <= "N" else "symptom" if code[:1] == "R" else ""
            if kind:
                terms[kind].append(name[0].lower() + name[1:] if name[1:2].islower() and zlib.crc32(name.encode()) % 4 else name)
    return generate("en", {label: sorted(set(names)) for label, names in terms.items()})


def own_terms() -> Terms:
    """The English names of drugs and tests."""
    lines = files("scenarium_medical_ner").joinpath("terms.txt").read_text(encoding="utf8").splitlines()
    parts = dict(line.split("|") for line in lines if line and not line.startswith("#"))
    return {"drug": parts["drug"].split(), "test": parts["test"].split(";")}


def held_out(term: str) -> str:
    """The split in which a term may occur: a fifth test, a tenth val."""
    bucket = zlib.crc32(f"term {term}".encode()) % 10
    return "test" if bucket < 2 else "val" if bucket == 2 else "train"


def generate(language: str, terms: Mapping[str, Sequence[str]], seed: int = 0) -> list[Row]:
    """Records of one to four sentences, each with its entities."""
    rng = np.random.default_rng((seed, len(language), ord(language[0])))
    lines = files("scenarium_medical_ner").joinpath("templates.txt").read_text(encoding="utf8").splitlines()
    sentences = [line[3:] for line in lines if line.startswith(f"{language}|")]
    rows: list[Row] = []
    for split, count in ROWS.items():
        own = {label: [term for term in names if label == "department" or held_out(term) == split] for label, names in terms.items()}
        for _ in range(count):
            chosen = rng.choice(np.array(sentences), int(rng.integers(1, 5)))
            rows.append({**record(chosen, own, "" if language == "zh" else " ", rng), "_split": split})
    return rows


def record(sentences: Iterable[str], terms: Mapping[str, Sequence[str]], space: str, rng: np.random.Generator) -> Row:
    """Fill the slots of the sentences and note where the terms stand."""
    text, entities = "", []
    for sentence in sentences:
        text += space if text else ""
        for part in re.split(r"(\{\w+\})", str(sentence)):
            label = part[1:-1]
            if part.startswith("{") and label in terms:
                part = terms[label][int(rng.integers(len(terms[label])))]
                entities.append({"start": len(text), "end": len(text) + len(part), "label": label})
            elif part.startswith("{"):
                part = str(int(rng.integers(*{"n": (1, 60), "t": (35, 41), "p": (60, 180), "q": (10, 110)}[label])))
            text += part
    return {"text": text, "entities": entities}
