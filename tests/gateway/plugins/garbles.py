"""A scenario whose worker writes to the gateway whatever a request tells it to."""

from __future__ import annotations

import gc
import sys

from scenarium.core import Field, Request, Response, Schema, Traits, hookimpl
from scenarium.core.workers.worker import Worker


class Ask(Request):
    frames: bytes = b""
    lines: int = 0
    """Empty lines to print."""


class Answer(Response):
    written: int


@hookimpl
def fields():
    return {"frames": Field("text", "Bytes for the socket")}


@hookimpl
def schema():
    return Schema(Ask, Answer)


@hookimpl
def sample():
    return Ask()


@hookimpl
def traits(config):
    return Traits(pure=False, max_batch_size=1)


@hookimpl
def load():
    return "no model"


@hookimpl
def predict_batch(batch):
    for request in batch:
        if request.frames:
            worker = next(each for each in gc.get_objects() if isinstance(each, Worker))
            worker.send(request.frames)
        for _ in range(request.lines // 1000):
            sys.stderr.write("\n" * 1000)
    return [Answer(written=len(request.frames)) for request in batch]
