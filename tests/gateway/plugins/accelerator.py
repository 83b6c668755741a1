"""A scenario on an accelerator that nobody has: it raises torch's own exceptions where a real one would."""

from __future__ import annotations

import os
import time
from pathlib import Path

from scenarium.core import Field, ModelConfig, Request, Response, ScenarioConfig, Schema, Traits, hookimpl
from scenarium.core.devices import DeviceMemory


class Card(ModelConfig):
    fits: int = 64
    """Most items for which it has memory at once."""
    pure: bool = True
    card: str | None = None
    """A folder that stands for a card of 16 GB: each process notes there what it holds."""
    gb: int = 4


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


class OnCard:
    """A model on the card that the folder stands for."""

    def __init__(self, card: Path, gb: int) -> None:
        self.note = card / f"{os.getpid()} {id(self)}"
        self.note.write_text(str(gb << 30))

    def device_memory(self) -> DeviceMemory:
        """What live processes noted; a dead one's memory is free, as on a real card."""
        notes = [(int(note.name.split()[0]), int(note.read_text())) for note in self.note.parent.iterdir()]
        used = sum(size for pid, size in notes if Path(f"/proc/{pid}").exists())
        own = sum(size for pid, size in notes if pid == os.getpid())
        return DeviceMemory("cuda:0", own, max(0, (16 << 30) - used), 16 << 30)


@hookimpl
def load(config):
    return OnCard(Path(config.model.card), config.model.gb) if config.model.card else object()


def fail(request: Ask) -> None:
    if request.once:
        if Path(request.once).exists():
            return
        Path(request.once).touch()
    if request.do == "assert":
        import torch

        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1")
    if request.do == "driver":
        raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED, unspecified launch failure")
    if request.do == "said":
        raise ValueError("no CUDA error: device-side assert is just a word here")


@hookimpl
def predict_batch(config, batch):
    if len(batch) > config.model.fits:
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    for request in batch:
        time.sleep(request.seconds)
        fail(request)
    return [Answer(text=request.text, batch=len(batch), pid=os.getpid()) for request in batch]


@hookimpl
def stream(request):
    yield {"part": 0, "pid": os.getpid()}
    fail(request)
