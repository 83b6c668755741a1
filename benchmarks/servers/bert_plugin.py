"""A small BERT (2 layers, 128 wide, 21 128 words: 3.1 million weights) as a scenario, with random weights: its size is what is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scenarium.core import Field, Metric, Request, Response, Schema, Signature, Source, TensorSpec, Traits, hookimpl

WORDS = 21_128
LABELS = ("fine", "odd")


class Ask(Request):
    text: str


class Answer(Response):
    label: str
    score: float


def _rows(paths: list[Path]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz     "))
    return [{"text": "".join(rng.choice(letters, 60)), "label": LABELS[n % 2]} for n in range(400)]


@hookimpl
def fields():
    return {"text": Field("text", "A message"), "label": Field("label", "Which of the two")}


@hookimpl
def sources():
    return [Source("messages", "generated", "CC0-1.0", _rows)]


@hookimpl
def schema():
    return Schema(Ask, Answer)


@hookimpl
def sample():
    return Ask(text="恭喜您中奖了")


@hookimpl
def signature():
    inputs = TensorSpec("input_ids", "int64", (-1,)), TensorSpec("attention_mask", "int64", (-1,))
    return Signature(inputs, (TensorSpec("logits", "float32", (2,)),))


@hookimpl
def model():
    import torch
    from transformers.models.bert.configuration_bert import BertConfig
    from transformers.models.bert.modeling_bert import BertForSequenceClassification

    class Bert(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
            self.bert = BertForSequenceClassification(BertConfig(vocab_size=WORDS, **sizes))

        def forward(self, input_ids, attention_mask):
            return self.bert(input_ids=input_ids, attention_mask=attention_mask).logits

    return Bert()


@hookimpl
def train(config, run):
    from safetensors.torch import save_model

    save_model(model(), str(run.out / "model.safetensors"))
    return True


@hookimpl
def traits():
    return Traits(preload=("transformers.models.bert.modeling_bert",))


@hookimpl
def preprocess(request):
    # One word a character is all that the size of the work needs.
    ids = np.asarray([101, *(1000 + ord(each) % 20_000 for each in request.text[:126]), 102], dtype=np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@hookimpl
def postprocess(output):
    logits = output["logits"]
    best = int(logits.argmax())
    return Answer(label=LABELS[best], score=float(logits[best]))


@hookimpl
def metric():
    return Metric("accuracy", floor=0.0)


@hookimpl
def score(rows, answers):
    return {"accuracy": sum(row["label"] == answer["label"] for row, answer in zip(rows, answers, strict=True)) / len(rows)}
