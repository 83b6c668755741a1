"""One loaded version: from requests to answers. The same code answers in a worker, in ``scenarium predict`` and in ``evaluate``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from scenarium.core import devices
from scenarium.core.bodies import decode
from scenarium.core.calls import SERVED, Served
from scenarium.core.errors import ScenariumError
from scenarium.core.manifest import Manifest
from scenarium.core.registry import Scenario
from scenarium.core.relay import direct
from scenarium.core.types import Batch, Signature, Traits

STATE = "state.json"


@dataclass(slots=True)
class Times:
    """Nanoseconds that a batch spent in each step."""

    preprocess: int = 0
    forward: int = 0
    postprocess: int = 0


class Runtime:
    """A scenario with its state, processor and loaded model."""

    def __init__(self, scenario: Scenario, state: dict[str, Any], folder: Path, device: str = "cpu", traits: Traits | None = None, version: int = 0) -> None:
        hook, config = scenario.hook, scenario.config
        self.scenario = scenario
        self.preprocess, self.predict_batch, self.postprocess = direct(hook.preprocess), direct(hook.predict_batch), direct(hook.postprocess)
        self.state = state
        self.version = version
        """Number of the stored version; 0: it is not in the store yet."""
        self.schema = hook.schema(config=config)
        self.traits = traits or hook.traits(config=config)
        self.signature: Signature = hook.signature(config=config, state=state)
        self.processor = hook.processor(config=config, state=state)
        self.fits: dict[Any, int] = {}
        """Most items of a batch for which the device had memory, by bucket, where it had none for more."""
        served = SERVED.set(Served(scenario.name, version, config.serve))
        try:
            self.model = hook.load(config=config, state=state, signature=self.signature, version=folder, device=device)
        finally:
            SERVED.reset(served)

    @classmethod
    def open(cls, scenario: Scenario, folder: Path, manifest: Manifest, device: str = "cpu") -> Runtime:
        """Load a stored version: its own data, model and train settings, and ``serve`` as it is configured now.

        Raises:
            ScenariumError: SCN-5003 (the installed plugin cannot read it), SCN-5005 (it no longer gives its stored answer).
        """
        from scenarium.core import acceptance

        acceptance.check_plugin(scenario, manifest)
        stored = acceptance.stored_config(scenario, manifest)
        state = json.loads((folder / STATE).read_text(encoding="utf8"))
        runtime = cls(scenario.with_config(stored), state, folder, device, manifest.traits, manifest.version)
        acceptance.check_answer(runtime, manifest)
        return runtime

    @property
    def max_batch_size(self) -> int:
        """Most items of one ``predict_batch``: the setting, else the plugin's."""
        return self.scenario.config.serve.max_batch_size or self.traits.max_batch_size

    def decode(self, body: bytes, content_type: str = "application/json") -> BaseModel:
        """Validate one request body."""
        request: BaseModel = decode(body, content_type, self.schema.request)
        return request

    def predict(self, requests: Sequence[BaseModel], times: Times | None = None) -> list[BaseModel | Exception]:
        """Answer each request, in order, with its answer or its own error. ``times`` is added to.

        Items are grouped by shape, so no request is padded to a much longer neighbour. Where a group raises and the scenario is
        pure, it is halved until the item that raises stands alone. Where its device has too little memory, the group is halved too, and the
        groups of that shape that come later are as small from the start.
        """
        answers: list[BaseModel | Exception | None] = [None] * len(requests)
        buckets: dict[Any, list[tuple[int, Any]]] = {}
        config = self.scenario.config
        times = times or Times()
        clock = time.perf_counter_ns
        began = clock()
        for index, request in enumerate(requests):
            try:
                item = self.preprocess(config=config, processor=self.processor, request=request)
            except Exception as fault:
                answers[index] = self._fault(fault)
            else:
                buckets.setdefault(_bucket(item), []).append((index, item))
        times.preprocess += clock() - began
        for shape, bucket in buckets.items():
            while bucket:
                size = self.fits.get(shape, self.max_batch_size)
                part, bucket = bucket[:size], bucket[size:]
                began = clock()
                outputs = self._outputs([item for _, item in part], shape)
                ended = clock()
                for (index, _), output in zip(part, outputs, strict=True):
                    answers[index] = self._answer(requests[index], output)
                times.forward += ended - began
                times.postprocess += clock() - ended
        return [answer if answer is not None else ScenariumError("SCN-4003", name=self.scenario.name, reason="no answer") for answer in answers]

    def infer(self, asked: Sequence[Batch], times: Times | None = None) -> list[tuple[Batch, int] | Exception]:
        """Run the forward alone on arrays named, typed and shaped as the signature says, batch axis first: no preprocess, no postprocess.

        Those of the same shapes run together, at most ``max_batch_size`` rows at once. The answer to each, in order: its outputs and how
        many rows ran together, or its own error.
        """
        answers: list[tuple[Batch, int] | Exception | None] = [None] * len(asked)
        groups: dict[Any, list[int]] = {}
        for index, arrays in enumerate(asked):
            groups.setdefault(tuple(array.shape[1:] for array in arrays.values()), []).append(index)
        began = time.perf_counter_ns()
        for group in groups.values():
            while group:
                count = total = 0
                while count < len(group) and (not count or total + _rows(asked[group[count]]) <= self.max_batch_size):
                    total += _rows(asked[group[count]])
                    count += 1
                part, group = group[:count], group[count:]
                for index, answer in zip(part, self._forward([asked[index] for index in part]), strict=True):
                    answers[index] = answer
        if times:
            times.forward += time.perf_counter_ns() - began
        return [answer if answer is not None else ScenariumError("SCN-4003", name=self.scenario.name, reason="no answer") for answer in answers]

    def _forward(self, part: Sequence[Batch]) -> list[tuple[Batch, int] | Exception]:
        """One run; where it raises and the scenario is pure, it is halved until what raises stands alone."""
        import numpy as np

        total = sum(map(_rows, part))
        try:
            # A copy even of one: what came over the wire is read-only.
            found = self.model({name: np.concatenate([arrays[name] for arrays in part]) for name in part[0]})
            outputs = {spec.name: np.asarray(found[spec.name], dtype=spec.dtype) for spec in self.signature.outputs}
            if wrong := [name for name, array in outputs.items() if array.shape[:1] != (total,)]:
                raise ValueError(f"the forward gave another number of rows than {total} in {', '.join(wrong)}")
        except Exception as fault:
            if len(part) == 1 or not self.traits.pure:
                return [self._fault(fault)] * len(part)
            middle = len(part) // 2
            return self._forward(part[:middle]) + self._forward(part[middle:])
        answers: list[tuple[Batch, int] | Exception] = []
        start = 0
        for arrays in part:
            end = start + _rows(arrays)
            answers.append(({name: array[start:end] for name, array in outputs.items()}, total))
            start = end
        return answers

    def close(self) -> None:
        """End what the model holds beside memory (a process, a thread, a connection): its own ``close``, where it has one."""
        close = getattr(self.model, "close", None)
        if close:
            close()

    def stream(self, request: BaseModel) -> Iterator[Any]:
        """Yield the parts of one answer.

        Raises:
            ScenariumError: SCN-4005 where the scenario does not stream.
        """
        parts = self.scenario.hook.stream(config=self.scenario.config, processor=self.processor, model=self.model, request=request)
        if parts is None:
            raise ScenariumError("SCN-4005", name=self.scenario.name)
        yield from parts

    def _outputs(self, items: list[Any], shape: Any) -> list[Any]:
        """One output or error an item; the plugin's own count is checked."""
        try:
            outputs = list(self.predict_batch(config=self.scenario.config, signature=self.signature, model=self.model, batch=items))
        except Exception as fault:
            if short := devices.out_of_memory(fault):
                devices.give_back()
            if len(items) == 1 or not self.traits.pure or devices.lost(fault):
                return [self._fault(fault)] * len(items)
            middle = len(items) // 2
            if short:
                self._remember(shape, len(items))
            return self._outputs(items[:middle], shape) + self._outputs(items[middle:], shape)
        if len(outputs) != len(items):
            reason = f"predict_batch of plugin {self.scenario.plugin.name!r} returned {len(outputs)} outputs for {len(items)} items"
            return [ScenariumError("SCN-4003", name=self.scenario.name, reason=reason)] * len(items)
        return outputs

    def _remember(self, shape: Any, size: int) -> None:
        """A batch of this size was too large for the device."""
        half = size // 2
        if half < self.fits.get(shape, self.max_batch_size):
            self.fits[shape] = half
            told = f"Out of memory with a batch of {size}; such batches have at most {half} items from now on."
            print(told, file=sys.stderr, flush=True)  # noqa: T201 -- the log of a worker is its stderr

    def _answer(self, request: BaseModel, output: Any) -> BaseModel | Exception:
        if isinstance(output, Exception):
            return output
        try:
            answer: BaseModel = self.postprocess(config=self.scenario.config, processor=self.processor, request=request, output=output)
        except Exception as fault:
            return self._fault(fault)
        return answer

    def _fault(self, fault: Exception) -> Exception:
        """A ``ScenariumError`` as it is; anything else is the plugin's fault and keeps its traceback as the cause."""
        if isinstance(fault, ScenariumError):
            return fault
        reason = f"{type(fault).__name__}: {fault}"
        error = ScenariumError("SCN-4043" if devices.out_of_memory(fault) else "SCN-4003", name=self.scenario.name, reason=reason)
        error.__cause__ = fault
        return error


def _rows(arrays: Batch) -> int:
    return len(next(iter(arrays.values())))


def _bucket(item: Any) -> Any:
    """Items of one bucket may share a batch: same names, and every axis within the same power of two."""
    if not isinstance(item, dict):
        return None
    return tuple((name, tuple(int(length - 1).bit_length() for length in getattr(array, "shape", ()))) for name, array in item.items())
