"""A scenario that starts a process of its own, which ends by itself long after every test."""

from __future__ import annotations

import subprocess

from scenarium.core import Field, Request, Response, Schema, hookimpl


class Ask(Request):
    text: str


class Answer(Response):
    text: str
    child: int


@hookimpl
def fields():
    return {"text": Field("text", "What is said back")}


@hookimpl
def schema():
    return Schema(Ask, Answer)


@hookimpl
def sample():
    return Ask(text="x")


@hookimpl
def load():
    return []


@hookimpl
def predict_batch(model, batch):
    if not model:
        model.append(subprocess.Popen(["sleep", "1000"]))
    return [Answer(text=request.text, child=model[0].pid) for request in batch]
