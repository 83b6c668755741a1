"""Exports of a version in the making: written by the hook ``export`` with real held-out rows, then compared with the trained model."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from scenarium.core.difference import difference, largest
from scenarium.core.engines import open_engine
from scenarium.core.errors import ScenariumError, Words
from scenarium.core.runtime import Runtime
from scenarium.core.types import Batch, Row

if TYPE_CHECKING:
    from scenarium.core.pipeline import Run

EXPORT = "model.onnx"
ROWS = 8
"""Held-out rows that an export is traced with and compared on."""
OTHERS = 40
"""Rows among which one of another length is looked for."""


def write(run: Run, runtime: Runtime, rows: Sequence[Row]) -> dict[str, str]:
    """Export ``runtime``'s model, with the evaluated ``rows``, into ``run.out`` and note the files in ``run.exports``.

    Returns what became of it, as tags of the manifest: ``export`` is ``checked``, ``unchecked: <why>`` or ``none: <why>``; where it was checked,
    ``parity`` tells the largest errors and ``warmup`` the shapes of one row's inputs (JSON). A model that cannot be exported, or whose export answers
    differently, is served by the torch engine; it is no fault of the training.
    """
    module = getattr(runtime.model, "module", None)
    if not runtime.signature.inputs:
        return {"export": "none: the scenario has no tensor signature"}
    try:
        batch = inputs(runtime, rows[:ROWS])
        if not run.exports:
            if module is None:
                return {"export": "none: the plugin loads a model of its own"}
            run.progress.note("exporting")
            made = runtime.scenario.hook.export(config=runtime.scenario.config, model=module, signature=runtime.signature, batch=batch, out=run.out)
            run.exports = list(made or ())
        if EXPORT not in run.exports:
            return {"export": f"unchecked: {', '.join(run.exports)}" if run.exports else "none: the plugin exports nothing"}
        return _check(run, runtime, batch, others(runtime, rows, batch))
    except ScenariumError as fault:
        for name in run.exports:
            (run.out / name).unlink(missing_ok=True)
        run.exports = []
        run.progress.note(f"no export: {fault.title()}")
        return {"export": f"none: {fault.title()}"}


def inputs(runtime: Runtime, rows: Sequence[Row]) -> Batch:
    """Rows as a client would send them, or the sample where there is none, as inputs of the forward.

    Raises:
        ScenariumError: SCN-3008: ``preprocess`` does not return the inputs of the signature.
    """
    hook, config = runtime.scenario.hook, runtime.scenario.config
    try:
        requests = [hook.request(config=config, row=row) for row in rows] or [hook.sample(config=config)]
    except ValidationError:  # the rows that 'evaluate' returned are in a form of its own
        requests = [hook.sample(config=config)]
    items = [hook.preprocess(config=config, processor=runtime.processor, request=request) for request in requests]
    names = [spec.name for spec in runtime.signature.inputs]
    if not all(isinstance(item, dict) and all(name in item for name in names) for item in items):
        reason = Words("the hook 'preprocess' does not return the inputs of the signature", "钩子 'preprocess' 返回的不是签名中的输入")
        raise ScenariumError("SCN-3008", reason=reason)
    found: Batch = hook.collate(config=config, signature=runtime.signature, batch=[{name: np.asarray(item[name]) for name in names} for item in items])
    return found


def others(runtime: Runtime, rows: Sequence[Row], batch: Batch) -> list[Batch]:
    """The shortest and the longest of single rows whose free axes differ from those of ``batch``: an axis that a trace fixed shows in them.

    None where only the batch axis is free, or every row is brought to the same length.
    """
    if not any(-1 in spec.shape for spec in runtime.signature.inputs):
        return []
    found: dict[int, Batch] = {}
    for row in [*rows[ROWS:OTHERS], *rows[:ROWS]]:
        single = inputs(runtime, [row])
        shapes = {name: array.shape[1:] for name, array in single.items()}
        if any(shape != batch[name].shape[1:] for name, shape in shapes.items()):
            found.setdefault(sum(array.size for array in single.values()), single)
    return [found[size] for size in sorted({min(found), max(found)})] if found else []


def compared(runtime: Runtime, opened: Callable[[], Any], batches: Sequence[Batch]) -> tuple[float, float]:
    """The largest absolute and relative error on ``batches`` of an export that ``opened`` opens.

    Raises:
        ScenariumError: SCN-3007 (above the tolerance), SCN-3008 (it cannot be opened, or does not run on one of them).
    """
    try:
        engine = opened()
        pairs: list[tuple[Any, Any]] = [(runtime.model(part), engine(part)) for part in batches]
    except ScenariumError:
        raise
    except Exception as fault:
        raise ScenariumError("SCN-3008", reason=f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else ''}") from fault
    for ours, exported in pairs:
        if found := difference(ours, exported, runtime.traits.tolerance):
            raise ScenariumError("SCN-3007", difference=found, tolerance=runtime.traits.tolerance)
    absolute, relative = map(max, zip(*(largest(ours, exported) for ours, exported in pairs), strict=True))
    return absolute, relative


def told(batches: Sequence[Batch], errors: tuple[float, float]) -> str:
    """What was measured, as one line."""
    rows = sum(len(next(iter(part.values()))) for part in batches)
    return f"largest error of the export on {rows} held-out rows: {errors[0]:.1e} absolute, {errors[1]:.1e} relative"


def _check(run: Run, runtime: Runtime, batch: Batch, more: Sequence[Batch]) -> dict[str, str]:
    """Compare on the whole batch, on its first row alone, which shows a batch axis that was fixed by the trace, and on rows of other lengths."""
    if importlib.util.find_spec("onnxruntime") is None:
        run.progress.note("onnxruntime is not installed: the export is not checked")
        return {"export": "unchecked: onnxruntime is not installed"}
    errors = compared(
        runtime,
        lambda: open_engine("onnx", run.out, runtime.signature, "cpu", build=lambda: None),
        [batch, {name: array[:1] for name, array in batch.items()}, *more],
    )
    parity = told([batch, *more], errors)
    run.progress.note(parity)
    return {"export": "checked", "parity": parity, "warmup": json.dumps({name: array.shape[1:] for name, array in batch.items()})}
