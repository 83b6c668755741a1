"""Held-out quality of fraud_text and medical_ner on labelled sets, trained as a user would: ``--data FILE``, all settings default.

Each set is measured beside the plugin's own named baseline on the same rows; fraud_text with three seeds (the mean is the figure), and with
the paired bootstrap interval of its difference from the baseline, which says whether that is more than chance. The sets lie outside the repository, in
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.results import Figure, figure, show, write
from scenarium.core.compare import held_out
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
    seeds: int = 1


SEEDS = 3
RESAMPLES = 1000

TRIALS = {
    "telecom_fraud_zh": Trial("fraud_text", "macro_f1", seeds=SEEDS),
    "sms_spam_en": Trial("fraud_text", "macro_f1", labels={"spam": "fraud", "ham": "normal"}, seeds=SEEDS),
    "fraud_calls_zh_simulated": Trial("fraud_text", "macro_f1", ("data.split=group:opening",), note="simulated, 15 types", prepare="calls", seeds=SEEDS),
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
        handles = [_trained(trial.plugin, f"{scratch}/store", [*sets, f"train.seed={seed}"]) for seed in range(trial.seeds)]
        manifests = [handle.version.manifest for handle in handles]
        interval = _interval(handles) if trial.plugin == "fraud_text" else None
    baseline, values = manifests[0].baseline, [manifest.metrics[trial.metric] for manifest in manifests]
    if baseline is None:
        raise RuntimeError(f"{trial.plugin} measured no baseline")
    floor, value = baseline.metrics[trial.metric], float(np.mean(values))
    note = f" ({trial.note})" if trial.note else ""
    print(f"{name}: {trial.metric} {value:.4f} ({', '.join(f'{v:.4f}' for v in values)}), {baseline.name} {floor:.4f}", flush=True)
    shown = f"{trial.plugin} on {name}{note}: held-out {trial.metric}"
    found = [figure(f"{shown} beside {baseline.name}", value, "", "higher", floor)]
    if interval:
        print(f"  difference {value - floor:+.4f}, 95 % [{interval[0]:+.4f}, {interval[1]:+.4f}]", flush=True)
        ends = zip(("lower", "upper"), interval, strict=True)
        found += [figure(f"{shown} less the baseline's, {end} end of the 95 % interval", bound, "", "higher") for end, bound in ends]
    return found


def _trained(plugin: str, store: str, sets: Sequence[str]) -> Handle:
    """A new version of the scenario, the newest of its store."""
    handle = Handle(Registry(Settings.read(environ={"SCENARIUM_STORE": store}, sets=sets, scenario=plugin)).scenario(plugin))
    handle.train()
    return handle


def _interval(handles: Sequence[Handle]) -> tuple[float, float]:
    """Of the mean difference of the seeds' macro F1 from the baseline's: 95 % percentile bootstrap over the held-out rows, paired (Efron & Tibshirani 1993)."""
    from scenarium_fraud_text import plain
    from scenarium_fraud_text.measures import macro_f1

    data = held_out(handles[0].scenario, handles[0].version.manifest)
    true, base = np.array([row["label"] for row in data.test]), plain.answers(data.train, data.test)
    answers = [np.array([answer["label"] for answer in handle.predict([{"text": row["text"]} for row in data.test])]) for handle in handles]
    rng, differences = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        at = rng.integers(0, len(true), len(true))
        differences.append(np.mean([macro_f1(true[at], predicted[at]) for predicted in answers]) - macro_f1(true[at], base[at]))
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


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
