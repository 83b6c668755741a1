"""The toy model as a scenario: a plugin in one file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field as Limits

from scenarium.core import Field, Metric, Request, Response, Schema, Source, hookimpl

sys.path.insert(0, str(Path(__file__).parent))
from toy_model import LABELS, forward, weights


class Ask(Request):
    features: Annotated[list[float], Limits(min_length=64, max_length=64)]


class Answer(Response):
    label: str
    score: float


def _rows(paths: list[Path]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(400, 64)).astype(np.float32)
    labels = forward(weights(), rows).argmax(axis=1)
    return [{"features": row.tolist(), "label": LABELS[label]} for row, label in zip(rows, labels, strict=True)]


@hookimpl
def fields():
    return {"features": Field("json", "64 numbers"), "label": Field("label", "Which of the two")}


@hookimpl
def sources():
    return [Source("toy", "generated", "CC0-1.0", _rows)]


@hookimpl
def schema():
    return Schema(Ask, Answer)


@hookimpl
def sample():
    return Ask(features=[i / 64 for i in range(64)])


@hookimpl
def train(run):
    first, second = weights()
    np.savez(run.out / "weights.npz", first=first, second=second)
    return True


@hookimpl
def load(version):
    stored = np.load(version / "weights.npz", allow_pickle=False)
    return stored["first"], stored["second"]


@hookimpl
def preprocess(request):
    return np.asarray(request.features, dtype=np.float32)


@hookimpl
def predict_batch(model, batch):
    return list(forward(model, np.stack(batch)))


@hookimpl
def postprocess(output):
    best = int(output.argmax())
    return Answer(label=LABELS[best], score=float(output[best]))


@hookimpl
def metric():
    return Metric("accuracy", floor=0.5)


@hookimpl
def score(rows, answers):
    return {"accuracy": sum(row["label"] == answer["label"] for row, answer in zip(rows, answers, strict=True)) / len(rows)}
