"""What happens where a plugin says nothing. Every implementation is ``trylast``; none imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from scenarium.core.config import ScenarioConfig
from scenarium.core.hookspecs import hookimpl
from scenarium.core.types import Batch, Evaluation, Row, Signature, SplitName, Traits

if TYPE_CHECKING:
    import numpy as np
    from pydantic import BaseModel

    from scenarium.core.runtime import Runtime
    from scenarium.core.types import Source

last = hookimpl(trylast=True)


class Defaults:
    """The default implementations. ``hook`` is the relay that they belong to, through which they reach other hooks."""

    hook: pluggy.HookRelay

    @last
    def config(self) -> type[ScenarioConfig]:
        return ScenarioConfig

    @last
    def sources(self) -> Sequence[Source]:
        return ()

    @last
    def fit(self) -> Mapping[str, Any]:
        return {}

    @last
    def processor(self, state: Mapping[str, Any]) -> Any:
        return state

    @last
    def items(self, rows: Sequence[Row], split: SplitName) -> Sequence[Any]:
        return rows

    @last
    def collate(self, signature: Signature, batch: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        import numpy as np

        pads = {spec.name: spec.pad for spec in signature.inputs}
        joined: Batch = {}
        for name in batch[0]:
            arrays = [np.asarray(item[name]) for item in batch]
            shapes = {array.shape for array in arrays}
            if len(shapes) == 1:
                joined[name] = np.stack(arrays)
                continue
            longest = [max(axis) for axis in zip(*shapes, strict=True)]
            joined[name] = np.full((len(arrays), *longest), pads.get(name, -100), dtype=arrays[0].dtype)
            for row, array in enumerate(arrays):
                corner: tuple[Any, ...] = (row, *(slice(0, length) for length in array.shape))
                joined[name][corner] = array
        return joined

    @last
    def signature(self) -> Signature:
        return Signature((), ())

    @last
    def request(self, config: ScenarioConfig, row: Row) -> BaseModel:
        cls = self.hook.schema(config=config).request
        made: BaseModel = cls.model_validate({name: row[name] for name in cls.model_fields if name in row})
        return made

    @last
    def evaluate(self, config: ScenarioConfig, runtime: Runtime, rows: Sequence[Row]) -> Evaluation:
        answers: list[dict[str, Any]] = []
        size = runtime.max_batch_size
        for start in range(0, len(rows), size):
            requests = [self.hook.request(config=config, row=row) for row in rows[start : start + size]]
            for answer in runtime.predict(requests):
                if isinstance(answer, BaseException):
                    raise answer
                answers.append(answer.model_dump(mode="json"))
        return Evaluation(dict(self.hook.score(config=config, rows=rows, answers=answers)), list(rows), answers)

    @last
    def report(self) -> Sequence[Any]:
        return ()

    @last
    def traits(self) -> Traits:
        return Traits()

    @last
    def load(self, config: ScenarioConfig, state: Mapping[str, Any], signature: Signature, version: Path, device: str) -> Any:
        from scenarium.core.engines import open_engine

        return open_engine(config.serve.engine, version, signature, device, build=lambda: self.hook.model(config=config, state=state))

    @last
    def preprocess(self, request: BaseModel) -> Any:
        return request

    @last
    def predict_batch(self, config: ScenarioConfig, signature: Signature, model: Any, batch: Sequence[Any]) -> Sequence[Any]:
        outputs = model(self.hook.collate(config=config, signature=signature, batch=batch))
        return [{name: array[row] for name, array in outputs.items()} for row in range(len(batch))]

    @last
    def postprocess(self, output: Any) -> Any:
        return output

    @last
    def log_entry(self, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        return entry
