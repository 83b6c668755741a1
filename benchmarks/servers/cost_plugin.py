"""A scenario whose batch of n takes 10 ms + 0.2 ms · n and no processor: a model on a device, as far as the queue can tell."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from scenarium.core import Field, Metric, Request, Response, Schema, Source, Traits, hookimpl

FIXED_S, EACH_S = 0.010, 0.0002


class Ask(Request):
    x: float


class Answer(Response):
    y: float


def _rows(paths: list[Path]) -> list[dict[str, Any]]:
    return [{"x": float(x), "y": float(x + 1)} for x in range(40)]


@hookimpl
def fields():
    return {"x": Field("number", "a number"), "y": Field("number", "one more")}


@hookimpl
def sources():
    return [Source("numbers", "generated", "CC0-1.0", _rows)]


@hookimpl
def schema():
    return Schema(Ask, Answer)


@hookimpl
def sample():
    return Ask(x=1)


@hookimpl
def train(run):
    (run.out / "weights.txt").write_text("none")
    return True


@hookimpl
def load():
    return FIXED_S, EACH_S


@hookimpl
def traits():
    return Traits(max_batch_size=64)


@hookimpl
def preprocess(request):
    return request.x


@hookimpl
def predict_batch(model, batch):
    fixed, each = model
    time.sleep(fixed + each * len(batch))
    return [x + 1 for x in batch]


@hookimpl
def postprocess(output):
    return Answer(y=output)


@hookimpl
def metric():
    return Metric("exact", floor=1.0)


@hookimpl
def score(rows, answers):
    return {"exact": sum(row["y"] == answer["y"] for row, answer in zip(rows, answers, strict=True)) / len(rows)}
