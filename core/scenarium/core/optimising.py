"""``scenarium optimize``: which engine and precision serve a version fastest, without losing more than is allowed on its held-out rows.

Each way is measured as it would be served: the forward on held-out rows as clients send them (median time of one row, and the batch size that
answers most a second), and the scenario's own evaluation on all held-out rows, beside the original's with the interval of ``compare``. What is kept
becomes a version of its own, which names its engine (``Manifest.optimised``).
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scenarium.core import acceptance, compare, devices, exports
from scenarium.core.engines import extra
from scenarium.core.errors import ScenariumError, Words
from scenarium.core.manifest import Manifest, Optimised
from scenarium.core.progress import Progress
from scenarium.core.quantising import quantise
from scenarium.core.registry import Registry, Scenario
from scenarium.core.runtime import STATE, Runtime
from scenarium.core.store import MANIFEST, PRODUCTION, Store, Version
from scenarium.core.triton_repository import CHECKED
from scenarium.core.types import Batch, Data, Evaluation, Row
from scenarium.core.workers import process

CALIBRATION = 200
"""Training rows, drawn at random, from which int8 takes its scales."""
ALIAS = "candidate"
WEIGHTS = "model.safetensors"
"""The torch engine's file, which no optimised version reads."""
LOW = 1e-2
"""Tolerance of answers in bf16 and int8 between machines: a product that is rounded the other way moves them by steps of that order."""
SECONDS = 0.5
"""How long each batch size is measured."""


class Way(NamedTuple):
    """An engine and the precision in which it computes."""

    engine: str
    precision: str

    @property
    def setting(self) -> str:
        """As ``serve.engine`` has it. int8 stands in the file."""
        return f"{self.engine}:bf16" if self.precision == "bf16" else self.engine


WAYS = (Way("onnx", "fp32"), Way("openvino", "fp32"), Way("openvino", "bf16"), Way("onnx", "int8"), Way("openvino", "int8"))
MODULES = {"onnx": "onnxruntime", "openvino": "openvino"}


@dataclass(frozen=True)
class Speed:
    """The forward's pace."""

    latency_ms: float
    """Median of one row alone."""
    per_second: float
    """Rows a second with the batch size that answers most."""
    batch: int


@dataclass(frozen=True)
class Tried:
    """One way: what was measured, or why it was left out."""

    way: Way
    size: int = 0
    """Bytes of the model's file."""
    speed: Speed | None = None
    comparison: compare.Comparison | None = None
    evaluation: Evaluation | None = None
    reason: Words | None = None

    @property
    def loss(self) -> float:
        """Share of the original's metric that is lost; negative where it is better."""
        assert self.comparison
        if not self.comparison.difference:
            return 0.0
        return -self.comparison.difference / abs(self.comparison.old_value) if self.comparison.old_value else float(np.sign(-self.comparison.difference)) * 1e9

    def within(self, max_drop: float) -> bool:
        """Whether at most ``max_drop`` (a share) is lost, rounding aside."""
        return self.loss <= max_drop + 1e-9


@dataclass
class Found:
    """What an optimisation gave."""

    source: Version
    original: Tried
    threads: int
    """With how many each was measured: as many as serving deals to a worker of the scenario."""
    tried: list[Tried] = field(default_factory=list)
    kept: Tried | None = None
    """The fastest within the allowed loss; None: none is faster than the original."""
    version: Version | None = None


def optimise(
    scenario: Scenario, store: Store, *, max_drop: float = 0.01, engine: str | None = None, precision: str | None = None, progress: Progress | None = None
) -> Found:
    """Try the ways, and register the fastest as a version with the alias ``candidate``.

    A production version that was optimised itself is optimised anew from the version that it was made from.

    Raises:
        ScenariumError: SCN-6061 (no checked export), SCN-6062 (no held-out rows), SCN-6063 (no such way), SCN-6064 (its data changed), SCN-5001.
    """
    progress = progress or Progress()
    ways = [way for way in WAYS if engine in (None, way.engine) and precision in (None, way.precision)]
    if not ways:
        raise ScenariumError("SCN-6063", engine=engine or "-", precision=precision or "-", known=", ".join(f"{way.engine} {way.precision}" for way in WAYS))
    source = _source(scenario, store)
    data = _data(scenario, source, progress)
    threads = scenario.config.serve.threads or _share(scenario, store)
    progress.note(f"each with {threads} thread{'s' * (threads > 1)}, as serving deals to a worker")
    with store.draft(scenario.name) as scratch, _limited(threads):
        runtime = Runtime.open(scenario, source.folder, source.manifest)
        try:
            progress.note(f"version {source.number} as it is served now ({runtime.scenario.config.serve.engine})")
            evaluation = _evaluate(runtime, data)
            rows = evaluation.rows or data.test
            served = Way(runtime.scenario.config.serve.engine, "fp32")
            found = Found(source, Tried(served, _size(source.folder, served), speed_of(runtime, rows), evaluation=evaluation), threads)
            samples = _samples(runtime, data.train)
        finally:
            runtime.close()
        for way in ways:
            progress.note(f"{way.engine} {way.precision}")
            try:
                found.tried.append(_try(scenario, source, way, scratch, found.original, data, samples, progress))
            except Exception as fault:  # whatever its library cannot do is a row of the table
                found.tried.append(Tried(way, reason=_why(fault)))
        found.kept = fastest(found.original, found.tried, max_drop)
        if found.kept:
            found.version = _commit(scenario, store, source, found.kept, scratch)
    return found


def _share(scenario: Scenario, store: Store) -> int:
    """Threads of one worker when every scenario that has a production version is busy, as a gateway on this machine and store deals them."""
    registry, workers = Registry(scenario.settings), 0
    for name in registry.names():
        with suppress(ScenariumError):  # another scenario's settings are wrong, so it is not served
            workers += registry.serve_config(name).workers if PRODUCTION in store.aliases(name)["aliases"] else 0
    return devices.share(workers)


@contextmanager
def _limited(threads: int) -> Iterator[None]:
    """The libraries' pools as in a worker with so many threads."""
    torch = sys.modules.get("torch")
    had = torch.get_num_threads() if torch else 0
    before = {name: os.environ.get(name) for name in process.THREADS}
    process.set_threads(threads)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if torch:
            torch.set_num_threads(had)


def fastest(original: Tried, tried: Sequence[Tried], max_drop: float) -> Tried | None:
    """The one that answers most a second of those that lose at most ``max_drop`` (a share) and are faster than the original."""
    assert original.speed
    fit = [each for each in tried if each.speed and each.within(max_drop) and each.speed.per_second > original.speed.per_second]
    return max(fit, key=lambda each: each.speed.per_second if each.speed else 0.0, default=None)


def _source(scenario: Scenario, store: Store) -> Version:
    version = store.open(scenario.name)
    if version.manifest.optimised:
        version = store.open(scenario.name, version.manifest.optimised.source)
    manifest = version.manifest
    if not manifest.inputs:
        reason = Words("the scenario is no tensor function", "该场景不是张量函数")
    elif exports.EXPORT not in manifest.exports or manifest.tags.get("export") != CHECKED:
        told = manifest.tags.get("export", "none")
        reason = Words(f"version {version.number} has no checked export ({told})", f"版本 {version.number} 没有通过校验的导出（{told}）")
    else:
        return version
    raise ScenariumError("SCN-6061", name=scenario.name, reason=reason)


def _data(scenario: Scenario, source: Version, progress: Progress) -> Data:
    if not source.manifest.data:
        raise ScenariumError("SCN-6062", name=scenario.name, version=source.number)
    data = compare.held_out(scenario, source.manifest, progress)
    if not data.test or not data.train:
        raise ScenariumError("SCN-6062", name=scenario.name, version=source.number)
    if data.manifest.get("sha256") != source.manifest.data.get("sha256"):
        reason = Words("the data that it was trained on has changed since.", "其训练所用的数据已发生变化。")
        raise ScenariumError("SCN-6064", name=scenario.name, version=source.number, reason=reason)
    return data


def _evaluate(runtime: Runtime, data: Data) -> Evaluation:
    found: Evaluation = runtime.scenario.hook.evaluate(config=runtime.scenario.config, runtime=runtime, rows=data.test)
    return found


def _samples(runtime: Runtime, rows: Sequence[Row]) -> Callable[[], list[Batch]]:
    """Random training rows as the model takes them, each alone, so that no padding is calibrated. Made when int8 is first tried."""
    picked = np.random.default_rng(0).permutation(len(rows))[:CALIBRATION]
    return lambda: [exports.inputs(runtime, [rows[index]]) for index in picked]


def speed_of(runtime: Runtime, rows: Sequence[Row]) -> Speed:
    """Run the forward on ``rows`` in batches of 1, 2, 4, … up to the largest that the scenario takes."""
    best = Speed(0.0, 0.0, 0)
    latency = 0.0
    size = 1
    while size <= runtime.max_batch_size:
        batches = [exports.inputs(runtime, [rows[(first + place) % len(rows)] for place in range(size)]) for first in range(0, 4 * size, size)]
        runtime.model(batches[0])  # some of an engine's work is done at the first run of a shape
        times: list[float] = []
        until = time.perf_counter() + SECONDS
        while len(times) < 4 or time.perf_counter() < until:
            began = time.perf_counter()
            runtime.model(batches[len(times) % len(batches)])
            times.append(time.perf_counter() - began)
        middle = statistics.median(times)
        latency = latency or 1000 * middle
        if size / middle > best.per_second:
            best = Speed(latency, size / middle, size)
        size *= 2
    return best


def _try(
    scenario: Scenario, source: Version, way: Way, scratch: Path, original: Tried, data: Data, samples: Callable[[], list[Batch]], progress: Progress
) -> Tried:
    """Make the version's folder for one way, load it, and measure.

    Raises:
        ScenariumError: SCN-6002 (its library is missing), SCN-6065 (no bf16 here), and what the model raises.
    """
    try:
        importlib.import_module(MODULES[way.engine])
    except ModuleNotFoundError as fault:
        raise ScenariumError("SCN-6002", engine=way.engine, module=fault.name, extra=extra(way.engine)) from fault
    if way.precision == "bf16":
        from scenarium.core.engines.openvino_engine import has_bf16

        if not has_bf16():
            raise ScenariumError("SCN-6065")
    folder = _folder(scratch, way)
    _lay_out(source, way, folder)
    if way.precision == "int8":
        _write_int8(source, scratch, folder, samples, progress)
    runtime = _open(scenario, source.manifest, way, folder)
    try:
        speed = speed_of(runtime, (original.evaluation.rows if original.evaluation else None) or data.test)
        evaluation = _evaluate(runtime, data)
    finally:
        runtime.close()
    assert original.evaluation
    comparison = compare.judge(scenario, source.manifest, source.number, original.evaluation, evaluation)
    return Tried(way, _size(folder, way), speed, comparison, evaluation)


def _write_int8(source: Version, scratch: Path, folder: Path, samples: Callable[[], list[Batch]], progress: Progress) -> None:
    """The int8 file, made once for all engines."""
    made = scratch / "int8.onnx"
    if not made.exists():
        quantise(source.folder / exports.EXPORT, made, samples(), progress)
    _link(str(made), str(folder / exports.EXPORT))


def _folder(scratch: Path, way: Way) -> Path:
    return scratch / f"{way.engine}-{way.precision}"


def _lay_out(source: Version, way: Way, folder: Path) -> None:
    """The files of the source that the new version needs, as links where the disk has them."""
    dropped = {WEIGHTS, MANIFEST, *source.manifest.exports}
    if way.precision != "int8":
        dropped.remove(exports.EXPORT)
    for relative in source.manifest.files:
        if relative in dropped or (way.precision == "int8" and relative.startswith(f"{exports.EXPORT}.")):
            continue
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        _link(str(source.folder / relative), str(folder / relative))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copy2(source, target)


def _open(scenario: Scenario, manifest: Manifest, way: Way, folder: Path) -> Runtime:
    stored = acceptance.stored_config(scenario, manifest)
    config = stored.model_copy(update={"serve": stored.serve.model_copy(update={"engine": way.setting})})
    state = json.loads((folder / STATE).read_text(encoding="utf8"))
    return Runtime(scenario.with_config(config), state, folder, traits=manifest.traits)


def _size(folder: Path, way: Way) -> int:
    path = folder / (WEIGHTS if way.engine == "torch" else exports.EXPORT)
    return path.stat().st_size if path.is_file() else 0


def _why(fault: Exception) -> Words:
    if isinstance(fault, ScenariumError):
        return Words(fault.title("en"), fault.title("zh"))
    text = f"{type(fault).__name__}: {str(fault).strip().partition(chr(10))[0]}"
    return Words(text, text)


def _commit(scenario: Scenario, store: Store, source: Version, kept: Tried, scratch: Path) -> Version:
    """Describe the kept way as a version, publish it and give it the alias."""
    way, old, folder = kept.way, source.manifest, _folder(scratch, kept.way)
    runtime = _open(scenario, old, way, folder)
    try:
        answer = runtime.predict([runtime.schema.request.model_validate_json(json.dumps(old.sample))])[0]
    finally:
        runtime.close()
    if isinstance(answer, Exception):
        raise answer
    assert kept.evaluation
    told = f"optimised from version {source.number}: {way.engine} {way.precision}"
    manifest = old.model_copy(
        update={
            "created": datetime.now(UTC),
            "answer": answer.model_dump(mode="json"),
            "metrics": kept.evaluation.metrics,
            "tolerance": old.tolerance if way.precision == "fp32" else max(old.tolerance, LOW),
            "exports": [exports.EXPORT],
            "optimised": Optimised(source=source.number, engine=way.setting, precision=way.precision),
            "packages": {**old.packages, MODULES[way.engine]: installed_version(MODULES[way.engine])},
            # How near the export is to the torch model was measured on the file in fp32.
            "tags": {tag: text for tag, text in old.tags.items() if tag != "parity" or way.precision == "fp32"} | {"optimised": told},
        }
    )
    version = store.commit(scenario.name, folder, manifest)
    store.set_alias(scenario.name, ALIAS, version.number, told)
    return version
