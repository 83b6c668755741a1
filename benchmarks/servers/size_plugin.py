"""A scenario that takes raw bytes and answers how many: what is measured is their way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scenarium.core import Field, Metric, Request, Response, Schema, Source, hookimpl


class Ask(Request):
    data: bytes


class Answer(Response):
    size: int


def _rows(paths: list[Path]) -> list[dict[str, Any]]:
    return [{"data": "x" * size, "size": float(size)} for size in range(1, 41)]


@hookimpl
def fields():
    return {"data": Field("text", "bytes"), "size": Field("number", "how many")}


@hookimpl
def sources():
    return [Source("sizes", "generated", "CC0-1.0", _rows)]


@hookimpl
def schema():
    return Schema(Ask, Answer)


@hookimpl
def sample():
    return Ask(data=b"four")


@hookimpl
def request(row):
    return Ask(data=row["data"].encode())


@hookimpl
def train(run):
    (run.out / "weights.txt").write_text("none")
    return True


@hookimpl
def load():
    return len


@hookimpl
def preprocess(request):
    return request.data


@hookimpl
def predict_batch(model, batch):
    return [model(each) for each in batch]


@hookimpl
def postprocess(output):
    return Answer(size=output)


@hookimpl
def metric():
    return Metric("exact", floor=1.0)


@hookimpl
def score(rows, answers):
    return {"exact": sum(row["size"] == answer["size"] for row, answer in zip(rows, answers, strict=True)) / len(rows)}
