"""A small MLP (128, 1024, 1024, 16) in eager torch as a scenario, with random weights: its size is what is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field as Limits

from scenarium.core import Field, Metric, Request, Response, Schema, Signature, Source, TensorSpec, hookimpl

WIDE = 128
LABELS = [f"label{number}" for number in range(16)]


class Ask(Request):
    features: Annotated[list[float], Limits(min_length=WIDE, max_length=WIDE)]


class Answer(Response):
    label: str


def _rows(paths: list[Path]) -> list[dict[str, Any]]:
    rows = np.random.default_rng(1).normal(size=(64, WIDE))
    return [{"features": row.tolist(), "label": LABELS[number % len(LABELS)]} for number, row in enumerate(rows)]


@hookimpl
def fields():
    return {"features": Field("json", "128 numbers"), "label": Field("label", "One of 16")}


@hookimpl
def sources():
    return [Source("mlp", "generated", "CC0-1.0", _rows)]


@hookimpl
def schema():
    return Schema(Ask, Answer)


@hookimpl
def sample():
    return Ask(features=[i / WIDE for i in range(WIDE)])


@hookimpl
def signature():
    return Signature((TensorSpec("X", "float32", (WIDE,)),), (TensorSpec("Y", "float32", (len(LABELS),)),))


@hookimpl
def model():
    import torch
    from torch import nn

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(WIDE, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, len(LABELS)))

        def forward(self, X: torch.Tensor) -> torch.Tensor:
            return self.layers(X)

    return Mlp()


@hookimpl
def train(run):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(model().state_dict(), run.out / "model.safetensors")
    return True


@hookimpl
def preprocess(request):
    return {"X": np.asarray(request.features, dtype=np.float32)}


@hookimpl
def postprocess(output):
    return Answer(label=LABELS[int(output["Y"].argmax())])


@hookimpl
def metric():
    return Metric("accuracy", floor=0.0)


@hookimpl
def score(rows, answers):
    return {"accuracy": sum(row["label"] == answer["label"] for row, answer in zip(rows, answers, strict=True)) / len(rows)}
