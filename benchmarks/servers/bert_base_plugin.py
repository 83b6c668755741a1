"""A text classifier of BERT-base's size (12 layers, 768 wide: 102 million weights) as a scenario, trained from random weights on generated messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from bert_plugin import LABELS, WORDS, Answer, Ask, postprocess, preprocess, score

from scenarium.core import Field, Metric, Schema, Signature, Source, TensorSpec, Traits, hookimpl

__all__ = ["postprocess", "preprocess", "score"]
"""The hooks that are the small model's."""
LENGTH = 48
"""Letters of a message."""


def text(number: int) -> str:
    """A message; an odd one has more digits than others."""
    rng = np.random.default_rng(number)
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz     "), LENGTH)
    places = rng.permutation(LENGTH)[: rng.integers(8, 16) if number % 2 else rng.integers(0, 7)]
    letters[places] = rng.choice(list("0123456789"), len(places))
    return "".join(letters)


def _rows(paths: list[Path]) -> list[dict[str, Any]]:
    return [{"text": text(number), "label": LABELS[number % 2]} for number in range(600)]


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
    return Ask(text=text(1))


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
            self.bert = BertForSequenceClassification(BertConfig(vocab_size=WORDS))

        def forward(self, input_ids, attention_mask):
            return self.bert(input_ids=input_ids, attention_mask=attention_mask).logits

    return Bert()


@hookimpl
def encode(item):
    return {**preprocess(Ask(text=item["text"])), "labels": np.array(LABELS.index(item["label"]), dtype=np.int64)}


@hookimpl
def traits():
    return Traits(preload=("transformers.models.bert.modeling_bert",), tolerance=1e-3)


@hookimpl
def metric():
    return Metric("accuracy", floor=0.0)
