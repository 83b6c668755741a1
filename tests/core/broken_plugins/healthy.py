"""The twin of all broken plugins: tells glad texts from sad ones by the average of its letters' vectors. Passes every check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field as Setting

from scenarium.core import Baseline, Field, Metric, Request, Response, Row, Schema, Signature, Source, TensorSpec, hookimpl

if TYPE_CHECKING:
    import torch

LONGEST = 64


class Ask(Request):
    text: str = Setting(min_length=1)


class Answer(Response):
    label: str
    probability: float = Setting(ge=0, le=1)


def letters(text: str) -> np.ndarray:
    return np.array([ord(letter) % 97 + 1 for letter in text[:LONGEST]], dtype=np.int64)


def words(paths: list[Path]) -> list[Row]:
    stems = {"good": "glad", "great": "glad", "love": "glad", "bad": "sad", "awful": "sad", "hate": "sad"}
    return [{"text": f"a {word} film{'!' * (number % 7)} {number}", "label": label} for number in range(25) for word, label in stems.items()]


@hookimpl
def fields() -> Mapping[str, Field]:
    return {"text": Field("text", "an opinion"), "label": Field("label", "glad or sad")}


@hookimpl
def sources() -> Sequence[Source]:
    return [Source("words", "generated", "CC0-1.0", words)]


@hookimpl
def schema() -> Schema:
    return Schema(Ask, Answer)


@hookimpl
def sample() -> Ask:
    return Ask(text="a great film")


@hookimpl
def fit(rows: Sequence[Row]) -> Mapping[str, Any]:
    return {"labels": sorted({row["label"] for row in rows})}


@hookimpl
def signature(state: Mapping[str, Any]) -> Signature:
    return Signature((TensorSpec("letters", "int64", (-1,)),), (TensorSpec("logits", "float32", (len(state["labels"]),)),))


@hookimpl
def encode(processor: Mapping[str, Any], item: Row, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
    ids = letters(item["text"])
    if rng is not None and len(ids) > 1:
        ids = np.where(rng.random(len(ids)) < 0.1, 1, ids)
    return {"letters": ids, "labels": np.array(processor["labels"].index(item["label"]), dtype=np.int64)}


@hookimpl
def model(state: Mapping[str, Any]) -> torch.nn.Module:
    import healthy_net

    return healthy_net.Average(len(state["labels"]))


@hookimpl
def preprocess(request: Ask) -> Mapping[str, np.ndarray]:
    return {"letters": letters(request.text)}


@hookimpl
def postprocess(processor: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> Answer:
    shares = np.exp(output["logits"] - output["logits"].max())
    shares /= shares.sum()
    return Answer(label=processor["labels"][int(shares.argmax())], probability=float(shares.max()))


@hookimpl
def metric() -> Metric:
    return Metric("accuracy")


@hookimpl
def score(rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    return {"accuracy": sum(row["label"] == answer["label"] for row, answer in zip(rows, answers, strict=True)) / max(len(rows), 1)}


@hookimpl
def baseline(train: Sequence[Row], test: Sequence[Row]) -> Baseline:
    return Baseline("always glad", {"accuracy": sum(row["label"] == "glad" for row in test) / max(len(test), 1)})
