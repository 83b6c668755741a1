"""A scenario whose model is its file of weights, held in memory."""

from __future__ import annotations

import os
import time

from scenarium.core import Field, ModelConfig, Request, Response, ScenarioConfig, Schema, Traits, hookimpl


class Weight(ModelConfig):
    load_seconds: float = 0.0
    trail: str | None = None
    """A file to which every load adds its process id."""


class Config(ScenarioConfig):
    model: Weight = Weight()


class Ask(Request):
    text: str
    seconds: float = 0.0
    n: int = 3


class Answer(Response):
    text: str
    pid: int


@hookimpl
def config() -> type[ScenarioConfig]:
    return Config


@hookimpl
def fields():
    return {"text": Field("text", "What is said back")}


@hookimpl
def schema():
    return Schema(Ask, Answer)


@hookimpl
def sample():
    return Ask(text="你好")


@hookimpl
def traits():
    return Traits(streams=True)


@hookimpl
def load(config, version):
    time.sleep(config.model.load_seconds)
    if config.model.trail:
        with open(config.model.trail, "a") as file:
            file.write(f"{os.getpid()}\n")
    return (version / "weights.bin").read_bytes()


@hookimpl
def predict_batch(model, batch):
    for request in batch:
        time.sleep(request.seconds)
    return [Answer(text=request.text, pid=os.getpid()) for request in batch]


@hookimpl
def stream(request):
    for number in range(request.n):
        yield {"part": number}
        time.sleep(request.seconds)
