"""Held-out quality of fraud_text and medical_ner on labelled sets, trained as a user would: ``--data FILE``, all settings default.

Each set is measured beside the plugin's own named baseline on the same rows. The sets lie outside the repository, in
``SCENARIUM_BENCH_DATA``, else in ``../shared/data`` beside it; a set that is not there is skipped, loudly.

    python -m benchmarks.quality_text
    python -m benchmarks.quality_text sms_spam_en ncbi_disease_ner
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.results import Figure, figure, show, write
from scenarium.core.config import Settings
from scenarium.core.handle import Handle
from scenarium.core.registry import Registry


@dataclass(frozen=True)
class Trial:
    """One labelled set and how it is used."""

    plugin: str
    metric: str
    sets: tuple[str, ...] = ()
    dev: bool = False
    """The set has a ``dev`` part, which is held out; else a quarter of the rows is, by hash."""
    note: str = ""
    prepare: str = ""
    """``calls``: dialogues of turns become one text each, the opening line is the group of the split."""
    labels: dict[str, str] = field(default_factory=dict)


TRIALS = {
    "telecom_fraud_zh": Trial("fraud_text", "macro_f1"),
    "sms_spam_en": Trial("fraud_text", "macro_f1", labels={"spam": "fraud", "ham": "normal"}),
    "fraud_calls_zh_simulated": Trial("fraud_text", "macro_f1", ("data.split=group:opening",), note="simulated, 15 types", prepare="calls"),
    "bc5cdr_ner": Trial("medical_ner", "f1", dev=True),
    "ncbi_disease_ner": Trial("medical_ner", "f1", dev=True),
    "zh_medqa_ner": Trial("medical_ner", "f1", dev=True),
}


def data_folder() -> Path:
    """Where the labelled sets lie."""
    return Path(os.environ.get("SCENARIUM_BENCH_DATA") or Path(__file__).resolve().parent.parent.parent / "shared" / "data")


def measure(name: str, trial: Trial, folder: Path) -> list[Figure]:
    """Train on the set and return the held-out metric; ``must`` is the baseline's value on the same rows."""
    source = folder / name / "train.jsonl.gz"
    if not source.is_file():
        print(f"!!! SKIPPED {name}: there is no {source}. Set SCENARIUM_BENCH_DATA to the folder of the labelled sets.", file=sys.stderr, flush=True)
        return []
    with tempfile.TemporaryDirectory(prefix="quality-") as scratch:
        path = _calls(source, Path(scratch)) if trial.prepare == "calls" else source
        sets = [f"data.path={path}", *trial.sets]
        sets += [f"data.test_path={folder / name / 'dev.jsonl.gz'}"] if trial.dev else ["data.test=0.25"]
        sets += [f"data.map_label={json.dumps(trial.labels)}"] if trial.labels else []
        settings = Settings.read(environ={"SCENARIUM_STORE": f"{scratch}/store"}, sets=sets, scenario=trial.plugin)
        manifest = Handle(Registry(settings).scenario(trial.plugin)).train().version.manifest
    if manifest.baseline is None:
        raise RuntimeError(f"{trial.plugin} measured no baseline")
    floor = manifest.baseline.metrics[trial.metric]
    note = f" ({trial.note})" if trial.note else ""
    print(f"{name}: {trial.metric} {manifest.metrics[trial.metric]:.4f}, {manifest.baseline.name} {floor:.4f}", flush=True)
    name = f"{trial.plugin} on {name}{note}: held-out {trial.metric} beside {manifest.baseline.name}"
    return [figure(name, manifest.metrics[trial.metric], "", "higher", floor)]


def figures(names: list[str] | None = None) -> list[Figure]:
    """The figures of the named sets, or of all."""
    found: list[Figure] = []
    for name in names or TRIALS:
        found += measure(name, TRIALS[name], data_folder())
    return found


def _calls(source: Path, scratch: Path) -> Path:
    """The calls as rows of ``text``, ``label`` (the type) and ``opening``."""
    path = scratch / "calls.jsonl"
    with gzip.open(source, "rt", encoding="utf8") as file, path.open("w", encoding="utf8") as out:
        for line in file:
            call = json.loads(line)
            turns = [text for _, text in call["turns"]]
            out.write(json.dumps({"text": "\n".join(turns), "label": call["type"], "opening": turns[0]}, ensure_ascii=False) + "\n")
    return path


if __name__ == "__main__":
    made = figures(sys.argv[1:])
    show(made)
    write("spine", made, ("torch", "numpy", "scikit-learn"))
