"""A plugin for the trainer's tests: points of ten classes, optionally as ragged sequences with masked labels."""

from __future__ import annotations

import os
import signal

import numpy as np
import torch

from scenarium.core import Field, Metric, ModelConfig, Request, Response, ScenarioConfig, Schema, Signature, Source, TensorSpec, hookimpl


class Model(ModelConfig):
    rows: int = 400
    dropout: float = 0.0
    masked: float = 0.0
    """Share of the labels that do not count."""
    ragged: bool = False
    """Rows are sequences of 1 to 6 points."""
    sgd: bool = False
    bias: float = 0.0
    """Kept out of the optimizer; tells two settings apart."""
    fault: str = ""
    """`kill:N`, `term:N`, `nan:N` or `oom:N`: what the N-th call of loss does in this process."""


class Config(ScenarioConfig):
    model: Model = Model()


class Ask(Request):
    points: list[list[float]]


class Answer(Response):
    label: int


calls = 0


def rows(config: Config) -> list[dict]:
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(10, 8)) * 2
    made = []
    for index in range(config.model.rows):
        length = int(rng.integers(1, 7)) if config.model.ragged else 1
        labels = rng.integers(0, 10, length)
        points = centres[labels] + rng.normal(size=(length, 8))
        kept = np.where(rng.random(length) < config.model.masked, -100, labels)
        made.append({"id": index, "points": points.astype(np.float32).tolist(), "labels": kept.tolist()})
    return made


class Net(torch.nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Dropout(dropout), torch.nn.Linear(64, 10))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.layers(points)


@hookimpl
def config() -> type[Config]:
    return Config


@hookimpl
def fields() -> dict[str, Field]:
    return {"points": Field("json", "coordinates"), "labels": Field("json", "classes"), "id": Field("integer", "number")}


@hookimpl
def sources(config: Config) -> list[Source]:
    return [Source("points", "generated", "CC0-1.0", lambda paths: rows(config))]


@hookimpl
def schema() -> Schema:
    return Schema(Ask, Answer)


@hookimpl
def sample() -> Ask:
    return Ask(points=[[0.0] * 8])


@hookimpl
def signature(config: Config) -> Signature:
    # Ragged rows have a length axis; the others are one point.
    axes = (-1,) if config.model.ragged else ()
    return Signature((TensorSpec("points", "float32", (*axes, 8)),), (TensorSpec("logits", "float32", (*axes, 10)),))


@hookimpl
def model(config: Config) -> torch.nn.Module:
    return Net(config.model.dropout)


@hookimpl
def encode(config: Config, item: dict) -> dict[str, np.ndarray]:
    points, labels = np.asarray(item["points"], np.float32), np.asarray(item["labels"], np.int64)
    return {"points": points, "labels": labels} if config.model.ragged else {"points": points[0], "labels": labels[0]}


@hookimpl(wrapper=True)
def loss(config: Config, model: torch.nn.Module):
    global calls
    calls += model.training
    kind, _, number = config.model.fault.partition(":")
    if kind and model.training and calls == int(number):
        if kind in ("kill", "term"):
            os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGTERM)
        elif kind == "oom":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        total, count = yield
        return total * (float("nan") if kind == "nan" else 1.0), count
    return (yield)


@hookimpl
def optimizer(config: Config, model: torch.nn.Module) -> torch.optim.Optimizer | None:
    return torch.optim.SGD(model.parameters(), lr=config.train.lr) if config.model.sgd else None


@hookimpl
def request(row: dict) -> Ask:
    return Ask(points=row["points"])


@hookimpl
def preprocess(config: Config, request: Ask) -> dict[str, np.ndarray]:
    points = np.asarray(request.points, np.float32)
    return {"points": points if config.model.ragged else points[0]}


@hookimpl
def postprocess(output: dict) -> Answer:
    return Answer(label=int(np.reshape(output["logits"], (-1, 10))[0].argmax()))


@hookimpl
def metric() -> Metric:
    return Metric("accuracy")


@hookimpl
def score(rows: list[dict], answers: list[dict]) -> dict[str, float]:
    return {"accuracy": sum(row["labels"][0] == answer["label"] for row, answer in zip(rows, answers, strict=True)) / max(len(rows), 1)}
