"""A scenario whose forward is a small tensor function in NumPy: two inputs, one of free length, and three outputs."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from scenarium.core import BadInput, Field, Request, Response, Schema, Signature, TensorSpec, Traits, hookimpl
from scenarium.core.engines import open_engine

INPUTS = (TensorSpec("X", "float32", (4,)), TensorSpec("IDS", "int64", (-1,)))
OUTPUTS = (TensorSpec("SUMS", "float32", (2,)), TensorSpec("COUNT", "int64", ()), TensorSpec("ODD", "bool", (4,)))
KILL, SLEEP, RAISE, RUN = -1, -2, -3, -4
"""What IDS may ask for in its first place: the last answers how many rows ran together."""


class Ask(Request):
    x: list[float]
    ids: list[int] = [1]


class Answer(Response):
    sums: list[float]
    count: int


def forward(arrays):
    x, ids = arrays["X"], arrays["IDS"]
    wish = set(ids[:, 0].tolist()) if ids.shape[1] else set()
    if KILL in wish:
        os.kill(os.getpid(), signal.SIGKILL)
    if RAISE in wish:
        raise ValueError("as it was asked to")
    if SLEEP in wish:
        time.sleep(0.3)
    count = np.full(len(x), len(x)) if RUN in wish else ids.sum(axis=1)
    return {"SUMS": np.stack([x.sum(axis=1), x.max(axis=1)], axis=1), "COUNT": count, "ODD": x % 2 == 1}


@hookimpl
def fields():
    return {"x": Field("json", "Four numbers")}


@hookimpl
def schema():
    return Schema(Ask, Answer)


@hookimpl
def sample():
    return Ask(x=[1, 2, 3, 4])


@hookimpl
def traits():
    return Traits(max_batch_size=8)


@hookimpl
def signature():
    return Signature(INPUTS, OUTPUTS)


@hookimpl
def load(config, signature, version, device):
    if config.serve.engine == "triton":
        return open_engine("triton", version, signature, device, build=lambda: None)
    return forward


@hookimpl
def preprocess(request):
    if len(request.x) != 4:
        raise BadInput("x", "has not four numbers", "不是四个数")
    return {"X": np.array(request.x, np.float32), "IDS": np.array(request.ids, np.int64)}


@hookimpl
def postprocess(output):
    return Answer(sums=output["SUMS"].tolist(), count=int(output["COUNT"]))
