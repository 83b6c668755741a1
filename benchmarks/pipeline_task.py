"""What serving a transformers model by its pipeline task adds to ``transformers.pipeline`` itself, and whether both answer the same.

The model is a BERT with random weights, made here: its answers mean nothing, but time and equality need no more. Three ways, one request at a time, in
turns: ``transformers.pipeline`` in this process; the version as a worker runs it, in this process; and the same by HTTP through a gateway. One thread each.

    python -m benchmarks.pipeline_task [--rounds 12] [--calls 40] [--layers 4 --wide 256]
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import logging
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from benchmarks import load, results
from benchmarks.triton_engine import p50
from scenarium.core.importing import import_pipeline
from scenarium.core.registry import Registry
from scenarium.core.runtime import Runtime
from scenarium.core.settings import Settings
from tests.gateway.conftest import Lab

TASK, NAME, WORDS = "text-classification", "sentiment", 2000
PEER, WORKER, GATEWAY = "transformers.pipeline", "in a worker", "through the gateway"


def write_model(folder: Path, layers: int, wide: int) -> None:
    """A classifier with a tokenizer of numbered words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate([*special, *(f"w{number}" for number in range(WORDS))])}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    named = {f"{word[1:-1].lower()}_token": word for word in special}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=128, **named).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": wide, "num_hidden_layers": layers, "num_attention_heads": wide // 64, "intermediate_size": 4 * wide}
    config = transformers.BertConfig(vocab_size=WORDS + len(special), **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)


def ways(folder: Path, lab: Lab, text: str) -> dict[str, Callable[[], dict[str, float]]]:
    """Each a call that gives the score of each label."""
    registry = Registry(Settings.read(environ={"SCENARIUM_STORE": lab.store.root}))
    import_pipeline(str(folder), TASK, NAME, registry, lab.store)
    version = lab.store.open(NAME)
    runtime = Runtime.open(Registry(registry.settings).scenario(NAME), version.folder, version.manifest)
    pipe: Any = transformers.pipeline(TASK, model=str(folder), device="cpu")
    gateway = lab.start(None, f"scenarios.{NAME}.serve.threads=1")
    gateway.ready(NAME, timeout=180)
    connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"))
    body = json.dumps({"text": text}).encode()

    def scores(labels: list[dict[str, Any]]) -> dict[str, float]:
        return {each["label"]: each["score"] for each in labels}

    def worker() -> dict[str, float]:
        (answer,) = runtime.predict([runtime.decode(body)])
        return scores(answer.model_dump()["labels"])

    def served() -> dict[str, float]:
        connection.request("POST", f"/scenarios/{NAME}/predict", body, {"content-type": "application/json"})
        return scores(json.loads(connection.getresponse().read())["labels"])

    return {PEER: lambda: scores(pipe(text, top_k=5, truncation=True)), WORKER: worker, GATEWAY: served}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rounds", 12), ("calls", 40), ("layers", 4), ("wide", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    text = " ".join(f"w{number}" for number in np.random.default_rng(0).integers(0, WORDS, 40))
    found: dict[str, list[float]] = {}
    with load.scratch() as folder:
        write_model(folder / "model", options.layers, options.wide)
        lab = Lab(folder)
        try:
            calls = ways(folder / "model", lab, text)
            first, *others = (call() for call in calls.values())
            apart = max(abs(each[label] - score) for each in others for label, score in first.items())
            for number, order in zip(range(options.rounds), itertools.cycle(itertools.permutations(calls)), strict=False):
                for name in order:
                    found.setdefault(name, []).append(p50(calls[name], options.calls))
                print(f"round {number + 1:2}  " + "  ".join(f"{name} {found[name][-1] / 1000:.2f} ms" for name in calls), flush=True)
        finally:
            lab.close()
    made = [results.figure("largest difference of a score from transformers.pipeline", apart, "", "lower")]
    for name in (WORKER, GATEWAY):
        ratios = [ours / theirs for ours, theirs in zip(found[name], found[PEER], strict=True)]
        made.append(results.figure(f"p50 over transformers.pipeline: {name}", load.summary(name, ratios), "times", "lower"))
    made += [results.figure(f"p50: {name}", statistics.median(values) / 1000, "ms", "lower") for name, values in found.items()]
    results.show(made)


if __name__ == "__main__":
    main()
