"""A scenario on an accelerator that nobody has: it raises torch's own exceptions where a real one would."""

from __future__ import annotations

import os
import time
from pathlib import Path

from scenarium.core import Field, ModelConfig, Request, Response, ScenarioConfig, Schema, Traits, hookimpl


class Card(ModelConfig):
    fits: int = 64
    """Most items for which it has memory at once."""
    pure: bool = True


class Config(ScenarioConfig):
    model: Card = Card()


class Ask(Request):
    text: str
    do: str = "answer"
    """`answer`, `sleep`, `assert` (a kernel fails), `driver` (the driver does), `said` (words about it that mean nothing)."""
    once: str | None = None
    """A file: it goes wrong while there is none, and makes it."""
    seconds: float = 0.0


class Answer(Response):
    text: str
    batch: int
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
def traits(config):
    return Traits(pure=config.model.pure, max_batch_size=16, streams=True)


@hookimpl
def load():
    return object()


def fail(request: Ask) -> None:
    import torch

    if request.once:
        if Path(request.once).exists():
            return
        Path(request.once).touch()
    if request.do == "assert":
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1")
    if request.do == "driver":
        raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED, unspecified launch failure")
    if request.do == "said":
        raise ValueError("no CUDA error: device-side assert is just a word here")


@hookimpl
def predict_batch(config, batch):
    import torch

    if len(batch) > config.model.fits:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    for request in batch:
        time.sleep(request.seconds)
        fail(request)
    return [Answer(text=request.text, batch=len(batch), pid=os.getpid()) for request in batch]


@hookimpl
def stream(request):
    yield {"part": 0, "pid": os.getpid()}
    fail(request)
