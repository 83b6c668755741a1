"""A scenario without a model whose requests say how it shall behave: the tests' scapegoat."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

from scenarium.core import Field, ModelConfig, Request, Response, ScenarioConfig, Schema, Traits, hookimpl


class Behaviour(ModelConfig):
    pure: bool = True
    concurrency: int | None = None
    max_batch: int = 8
    load_seconds: float = 0.0
    answer: str = "one"
    """Differs from version to version."""
    wrong_count: bool = False
    sick: str | None = None
    """Answers nothing while this file exists."""
    does: str | None = None
    """What every request makes this version do, whatever it says itself; for ``seconds``."""
    seconds: float = 0.0


class Config(ScenarioConfig):
    model: Behaviour = Behaviour()


class Ask(Request):
    text: str
    do: str = "answer"
    """`answer`, `sleep`, `raise`, `kill`, `exit`, `hang`, `print`, `orphan`, `grow`, `span`."""
    seconds: float = 0.0
    trail: str | None = None
    """A file to which every run of this request adds its text."""
    n: int = 3


class Answer(Response):
    text: str
    answer: str
    batch: int
    pid: int
    noise: float


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
    model = config.model
    return Traits(pure=model.pure, concurrency=model.concurrency or "batch", max_batch_size=model.max_batch, streams=True)


@hookimpl
def load(config, version):
    time.sleep(config.model.load_seconds)
    return (version / "weights.bin").read_bytes()


def note(request: Ask, text: str) -> None:
    if request.trail:
        with open(request.trail, "a") as file:
            file.write(text + "\n")


@hookimpl
def predict_batch(config, model, batch):
    if config.model.sick and os.path.exists(config.model.sick):
        raise RuntimeError("sick")
    if config.model.does:
        batch = [request.model_copy(update={"do": config.model.does, "seconds": config.model.seconds}) for request in batch]
    for request in batch:
        note(request, request.text)
    for request in batch:
        if request.do == "sleep":
            time.sleep(request.seconds)
        elif request.do == "raise":
            raise ValueError(f"cannot take {request.text}")
        elif request.do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif request.do == "exit":
            os._exit(3)
        elif request.do == "hang":
            time.sleep(3600)
        elif request.do == "orphan":
            subprocess.run(["sh", "-c", "sleep 0.2 &"], check=True)
        elif request.do == "grow":
            return [b"x" * 2**30] * len(batch)
        elif request.do == "span":
            from opentelemetry import trace

            with trace.get_tracer("plugin").start_as_current_span("look up"):
                time.sleep(request.seconds)
        elif request.do == "print":
            print("to stdout:", request.text)
            sys.stderr.write(f"to stderr: {request.text}\n")
    noise = random.random()
    answers = [Answer(text=r.text, answer=config.model.answer, batch=len(batch), pid=os.getpid(), noise=noise) for r in batch]
    return answers[:-1] if config.model.wrong_count and len(batch) > 1 else answers


@hookimpl
def stream(request):
    def parts():
        try:
            for number in range(request.n):
                if request.do == "raise" and number == 1:
                    raise ValueError("in the middle")
                if request.do == "kill" and number == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield {"part": number, "text": request.text}
                time.sleep(request.seconds)
        finally:
            note(request, "closed")

    return parts()
