"""Held-out intent accuracy of the chatbot's NLU: the default bot, and BANKING77 and CLINC150 through the user's-own-file path.

Every figure stands beside the plugin's baseline on the same rows. The sets are cut to their first intents, all rows of each, because Rasa's trainer
on two cores takes minutes for the whole: the name of a figure says how many. They lie outside the repository, in ``SCENARIUM_BENCH_DATA``, else in
``../shared/data`` beside it; a set that is not there is skipped, loudly. Needs the environment: ``scenarium env create chatbot``.

    python -m benchmarks.quality_chatbot
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.quality_text import data_folder
from benchmarks.results import Figure, figure, show, write
from scenarium.core.config import Settings
from scenarium.core.handle import Handle
from scenarium.core.registry import Registry

INTENTS = {"banking77": 20, "clinc150": 30}
"""Set to how many of its intents, in alphabetical order, are used."""


def train(scratch: Path, *sets: str) -> tuple[float, str, float]:
    """Train with ``sets``; return accuracy, the baseline's name and its accuracy."""
    settings = Settings.read(environ={"SCENARIUM_STORE": str(scratch / "store")}, sets=sets, scenario="chatbot")
    manifest = Handle(Registry(settings).scenario("chatbot")).train().version.manifest
    if manifest.baseline is None:
        raise RuntimeError("chatbot measured no baseline")
    return manifest.metrics["accuracy"], manifest.baseline.name, manifest.baseline.metrics["accuracy"]


def cut(source: Path, target: Path, count: int) -> None:
    """Write the rows of the first ``count`` intents as ``text`` and ``intent``."""
    with gzip.open(source, "rt", encoding="utf8") as file:
        rows = [json.loads(line) for line in file]
    kept = set(sorted({row["label"] for row in rows})[:count])
    lines = [json.dumps({"text": row["text"], "intent": row["label"]}) for row in rows if row["label"] in kept]
    target.write_text("\n".join(lines) + "\n", encoding="utf8")


def figures() -> list[Figure]:
    """The figures of the default bot and of each set that is there."""
    found = []
    with tempfile.TemporaryDirectory(prefix="quality-") as folder:
        scratch = Path(folder)
        accuracy, name, floor = train(scratch)
        found.append(figure(f"chatbot, default utterances (written for it): held-out accuracy beside {name}", accuracy, "", "higher", floor))
        for data, count in INTENTS.items():
            source = data_folder() / data / "train.jsonl.gz"
            if not source.is_file():
                print(f"!!! SKIPPED {data}: there is no {source}. Set SCENARIUM_BENCH_DATA to the folder of the labelled sets.", file=sys.stderr, flush=True)
                continue
            own = scratch / f"{data}.jsonl"
            cut(source, own, count)
            accuracy, name, floor = train(scratch / data, f"data.path={own}", "data.test=0.25")
            found.append(figure(f"chatbot on {data}, {count} intents: held-out accuracy beside {name}", accuracy, "", "higher", floor))
    return found


if __name__ == "__main__":
    measured = figures()
    show(measured)
    write("spine", measured, ("scikit-learn",))
