"""A scenario that takes bytes: its request has three forms."""

from __future__ import annotations

from scenarium.core import BadInput, Field, Request, Response, Schema, hookimpl


class Ask(Request):
    image: bytes
    top: int = 1


class Answer(Response):
    size: int
    top: int


@hookimpl
def fields():
    return {"image": Field("image", "A picture")}


@hookimpl
def schema():
    return Schema(Ask, Answer)


@hookimpl
def sample():
    return Ask(image=b"\x89PNG")


@hookimpl
def load():
    return "no model"


@hookimpl
def preprocess(request):
    if not request.image:
        raise BadInput("image", "is empty", "为空")
    return request


@hookimpl
def predict_batch(batch):
    return [Answer(size=len(request.image), top=request.top) for request in batch]
