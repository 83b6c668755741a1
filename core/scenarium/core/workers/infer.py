"""Items whose bodies are tensors: from the bytes of a v2 request (``scenarium.core.tensors``) to those of its answer.

A scenario that is a tensor function takes its signature's inputs, and its forward runs on them as they are: no preprocess, no postprocess.
Every scenario also takes whole predict requests, one an element of the ``BYTES`` tensor ``REQUEST``, and gives their answers in ``RESPONSE``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from scenarium.core.errors import ScenariumError
from scenarium.core.runtime import Runtime, Times
from scenarium.core.tensors import HEAD, REQUEST, RESPONSE, Malformed, declared, read_header
from scenarium.core.workers import tensor_codec as codec
from scenarium.core.workers.frames import Item
from scenarium.core.workers.tensor_codec import Asked

Log = Callable[[int, BaseModel, BaseModel | Exception], None]
"""Told of each predict request inside an item (by the item's place), with its answer."""


class Answered(NamedTuple):
    """One item's outputs."""

    values: dict[str, codec.Values]
    run: int
    """Rows that ran together."""


class Inference:
    """Answers such items with one loaded version."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.version = str(runtime.version)
        self.specs = runtime.signature
        self.inputs, self.outputs = declared(runtime.signature.inputs), declared(runtime.signature.outputs)
        self.headers = codec.Headers()
        self._flat = [spec.name for spec in runtime.signature.inputs if not spec.shape]

    def answers(self, items: Sequence[Item], times: Times, log: Log) -> list[bytes | Exception]:
        """The answer or the error of each item, in order. Items of the same shapes run together."""
        names: list[str] = []
        asked: list[Asked | Exception] = []
        for item in items:
            length, _, name = item.content_type.partition(" ")
            names.append(name)
            try:
                asked.append(self._read(memoryview(item.body), int(length)))
            except ScenariumError as fault:
                asked.append(fault)
        found: list[Answered | Exception] = [each if isinstance(each, Exception) else ScenariumError("SCN-4013") for each in asked]
        whole = [(place, each) for place, each in enumerate(asked) if isinstance(each, Asked) and REQUEST.name in each.inputs]
        rows = [(place, each) for place, each in enumerate(asked) if isinstance(each, Asked) and REQUEST.name not in each.inputs]
        for answered, chosen in ((self._predict(whole, times, log), whole), (self._forward([each for _, each in rows], times), rows)):
            for (place, _), answer in zip(chosen, answered, strict=True):
                found[place] = answer
        return [self._write(name, each, answer) for name, each, answer in zip(names, asked, found, strict=True)]

    def _read(self, body: memoryview, length: int) -> Asked:
        # The name of the only input decides: the two forms have none in common, and a header may be long.
        head = bytes(body[: length or len(body)])
        if length and (known := self.headers.read(head, body[length:])):
            return known
        whole = not self.inputs or (f'"{REQUEST.name}"'.encode() in head and _first_input(head) == REQUEST.name)
        asked = codec.read(body, length, (REQUEST,) if whole else self.inputs, (RESPONSE,) if whole else self.outputs)
        limit = self.runtime.max_batch_size
        if asked.rows > limit:
            raise Malformed(f"has {asked.rows} rows where {limit} are the most", f"有 {asked.rows} 行，超过上限 {limit}")
        if length:
            self.headers.keep(head, asked)
        return asked

    def _forward(self, asked: Sequence[Asked], times: Times) -> list[Answered | Exception]:
        """The signature's outputs."""
        batches = []
        for each in asked:
            batch = {spec.name: np.asarray(each.inputs[spec.name]) for spec in self.specs.inputs}
            for name in self._flat:
                batch[name] = batch[name].reshape(-1)
            batches.append(batch)
        found: list[Answered | Exception] = []
        for answer in self.runtime.infer(batches, times):
            if isinstance(answer, Exception):
                found.append(answer)
                continue
            outputs, run = answer
            values: dict[str, codec.Values] = {}
            for spec in self.specs.outputs:
                values[spec.name] = outputs[spec.name] if spec.shape else outputs[spec.name].reshape(-1, 1)
            found.append(Answered(values, run))
        return found

    def _predict(self, asked: Sequence[tuple[int, Asked]], times: Times, log: Log) -> list[Answered | Exception]:
        """Answers to whole requests; the first that fails is the item's error."""
        requests: list[BaseModel] = []
        spans: list[tuple[int, int] | Exception] = []
        for _, each in asked:
            start = len(requests)
            try:
                requests += [self.runtime.decode(bytes(body), "") for body in each.inputs[REQUEST.name]]
                spans.append((start, len(requests)))
            except ScenariumError as fault:
                del requests[start:]
                spans.append(fault)
        answers = self.runtime.predict(requests, times) if requests else []
        run = min(len(requests), self.runtime.max_batch_size)
        found: list[Answered | Exception] = []
        for (place, _), span in zip(asked, spans, strict=True):
            if isinstance(span, Exception):
                found.append(span)
                continue
            part = answers[slice(*span)]
            for request, answer in zip(requests[slice(*span)], part, strict=True):
                log(place, request, answer)
            failed = next((answer for answer in part if isinstance(answer, Exception)), None)
            found.append(failed or Answered({RESPONSE.name: [_json(answer) for answer in part]}, run))
        return found

    def _write(self, name: str, asked: Asked | Exception, answer: Answered | Exception) -> bytes | Exception:
        if isinstance(asked, Exception) or isinstance(answer, Exception):
            return answer if isinstance(answer, Exception) else ScenariumError("SCN-4013")
        about: dict[str, Any] = {"model_name": name, "model_version": self.version}
        if asked.ident:
            about["id"] = asked.ident
        length, body = codec.write(about, asked.outputs, answer.values)
        return HEAD.pack(length, asked.rows, answer.run) + body


def _json(answer: Any) -> bytes:
    text: str = answer.model_dump_json()
    return text.encode()


def _first_input(head: bytes) -> Any:
    listed = read_header(head).get("inputs")
    return listed[0].get("name") if isinstance(listed, list) and listed and isinstance(listed[0], dict) else None
