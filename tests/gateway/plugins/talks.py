"""A scenario without a model that says back what it is told, a character a part: a language model as its clients see it, and embeddings."""

from __future__ import annotations

import time
from typing import Literal

from scenarium.core import BadInput, Field, Request, Response, ScenarioConfig, Schema, Section, Traits, hookimpl


class Message(Section):
    role: Literal["system", "user", "assistant"]
    content: str


class Ask(Request):
    prompt: str | None = None
    messages: list[Message] | None = None
    input: str | None = None
    max_new_tokens: int = 64
    temperature: float = 0.8
    stop: list[str] = []
    seed: int | None = None
    top_k: int = 50
    seconds: float = 0.0
    """Before each part."""
    trail: str | None = None
    """A file that is told when a stream is closed."""


class Usage(Section):
    prompt_tokens: int
    completion_tokens: int


class Answer(Response):
    text: str = ""
    finish_reason: Literal["stop", "length"] = "stop"
    usage: Usage
    embedding: list[float] = []


@hookimpl
def config() -> type[ScenarioConfig]:
    return ScenarioConfig


@hookimpl
def fields():
    return {"text": Field("text", "What is said back")}


@hookimpl
def schema():
    return Schema(Ask, Answer)


@hookimpl
def sample():
    return Ask(prompt="你好")


@hookimpl
def traits():
    return Traits(concurrency=8, max_batch_size=8, streams=True)


@hookimpl
def load():
    return object()


def text_of(request: Ask) -> str:
    if request.max_new_tokens > 1000:
        raise BadInput("max_new_tokens", "is more than 1000", "大于 1000")
    told = "|".join(f"{message.role}:{message.content}" for message in request.messages) if request.messages else request.prompt or ""
    seed = "" if request.seed is None else f"#{request.seed}"
    return f"{told}{seed}".split(request.stop[0])[0] if request.stop else f"{told}{seed}"


def end_of(request: Ask, text: str) -> dict:
    said = min(len(text), request.max_new_tokens)
    usage = {"prompt_tokens": len(text_of(request)), "completion_tokens": said}
    return {"finish_reason": "length" if said < len(text) else "stop", "usage": usage}


@hookimpl
def predict_batch(batch):
    answers = []
    for request in batch:
        text = text_of(request)
        if request.input is not None:
            answers.append(Answer(usage=Usage(prompt_tokens=len(request.input), completion_tokens=0), embedding=[len(request.input) / 2, 0.25]))
        else:
            answers.append(Answer(text=text[: request.max_new_tokens], **end_of(request, text)))
    return answers


@hookimpl
def stream(request):
    text = text_of(request)

    def parts():
        try:
            for character in text[: request.max_new_tokens]:
                time.sleep(request.seconds)
                if character == "!":
                    raise ValueError("in the middle")
                yield {"text": character}
            yield end_of(request, text)
        finally:
            if request.trail:
                with open(request.trail, "a") as file:
                    file.write("closed\n")

    return parts()
