"""Two versions of a scenario on the same held-out rows: which is better by the primary metric, and how sure that is.

The answers of an evaluation are not stored, so both versions answer again. The rows are those that the new version held out:
its stored data settings are prepared anew and must give the data manifest that the version carries. A split is by the hash of
the row's group, stable as data grows, so rows held out today were held out from the old version too.

Interval: paired percentile bootstrap (Efron & Tibshirani 1993, ch. 13 and 16): (row, answer of old, answer of new) triples are drawn
with replacement, both metrics computed on each draw, and the 2.5th and 97.5th percentile of the difference reported.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scenarium.core import datasets
from scenarium.core.acceptance import stored_config
from scenarium.core.errors import ScenariumError, Words
from scenarium.core.manifest import Manifest
from scenarium.core.progress import Progress
from scenarium.core.registry import Scenario
from scenarium.core.runtime import Runtime
from scenarium.core.store import PRODUCTION, Store
from scenarium.core.types import Data, Evaluation, Metric, Row

RESAMPLES = 1000
BUDGET_S = 60.0
"""A slow ``score`` gets fewer resamples, at least 100, so that the comparison ends in about this time."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was measured. ``difference`` is new minus old, signed so that positive means better; ``interval`` its 95 % interval."""

    metric: Metric
    old: int
    new: int
    rows: int
    old_value: float
    new_value: float
    difference: float
    interval: tuple[float, float] | None
    """None where the evaluation gives no answers row by row."""
    resamples: int

    @property
    def worse(self) -> bool:
        """Whether the new version is worse: its value is, and no part of the interval lets it be better."""
        if math.isnan(self.new_value):
            return True
        return self.difference < 0 and (self.interval is None or self.interval[1] <= 0)

    def text(self) -> str:
        """One line: both values, the difference and its interval."""
        spread = f", 95 % [{self.interval[0]:+.4f}, {self.interval[1]:+.4f}]" if self.interval else ""
        return f"{self.metric.name} {self.old_value:.4f} -> {self.new_value:.4f} ({self.difference:+.4f}{spread})"


def held_out(scenario: Scenario, manifest: Manifest, progress: Progress | None = None) -> Data:
    """The data that a version was trained and measured on, prepared anew from its stored settings."""
    return datasets.prepare(scenario.with_config(stored_config(scenario, manifest)), progress or Progress())


def compare(scenario: Scenario, store: Store, old: int, new: int, *, progress: Progress | None = None, seed: int = 0) -> Comparison:
    """Measure both versions on the rows that the new one held out.

    Raises:
        ScenariumError: SCN-5007: the data changed since the new version was trained, or the versions measure different things.
    """
    progress = progress or Progress()
    before, after = store.open(scenario.name, old), store.open(scenario.name, new)
    values: dict[str, Any] = {"name": scenario.name, "old": old, "new": new}
    if before.manifest.metric.name != after.manifest.metric.name:
        pair = f"{before.manifest.metric.name} / {after.manifest.metric.name}"
        raise ScenariumError("SCN-5007", reason=Words(f"their primary metrics differ ({pair}).", f"它们的主要指标不同（{pair}）。"), **values)
    data = held_out(scenario, after.manifest, progress)
    if data.manifest.get("sha256") != after.manifest.data.get("sha256"):
        reason = Words("the data that the new version was trained on has changed since.", "新版本训练所用的数据已发生变化。")
        raise ScenariumError("SCN-5007", reason=reason, **values)
    evaluations = []
    for version in (before, after):
        progress.note(f"measuring version {version.number} on {len(data.test)} held-out rows")
        runtime = Runtime.open(scenario, version.folder, version.manifest)
        try:
            evaluations.append(scenario.hook.evaluate(config=runtime.scenario.config, runtime=runtime, rows=data.test))
        finally:
            runtime.close()
    return judge(scenario, after.manifest, old, evaluations[0], evaluations[1], seed=seed)


def judge(scenario: Scenario, manifest: Manifest, old: int, before: Evaluation, after: Evaluation, *, seed: int = 0) -> Comparison:
    """Compare two evaluations of the same rows, by the metric and the settings of the new version's ``manifest``."""
    metric, config = manifest.metric, stored_config(scenario, manifest)
    values = before.metrics[metric.name], after.metrics[metric.name]
    sign = 1.0 if metric.higher_is_better else -1.0
    interval, draws = None, 0
    if before.rows and len(before.rows) == len(after.rows) == len(before.answers) == len(after.answers):

        def value(rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> float:
            scores: Mapping[str, float] = scenario.hook.score(config=config, rows=rows, answers=answers)
            return float(scores.get(metric.name, math.nan))

        differences = _resampled(value, before, after, sign, np.random.default_rng(seed))
        draws = len(differences)
        if draws:
            low, high = np.percentile(differences, [2.5, 97.5])
            interval = (float(low), float(high))
    difference = sign * (values[1] - values[0])
    return Comparison(metric, old, manifest.version, len(after.rows), *values, difference, interval, draws)


def _resampled(value: Any, before: Evaluation, after: Evaluation, sign: float, rng: np.random.Generator) -> list[float]:
    """Differences of the metric on resampled rows; a draw on which the metric is undefined (one class only) is left out."""
    differences: list[float] = []
    began = time.monotonic()
    for draw in range(RESAMPLES):
        if draw >= 100 and time.monotonic() - began > BUDGET_S:
            break
        picked = rng.integers(0, len(after.rows), len(after.rows))
        rows = [after.rows[i] for i in picked]
        try:
            pair = [value(rows, [evaluation.answers[i] for i in picked]) for evaluation in (before, after)]
        except (ValueError, ZeroDivisionError):
            continue
        if all(map(math.isfinite, pair)):
            differences.append(sign * (pair[1] - pair[0]))
    return differences


def promote(
    scenario: Scenario, store: Store, new: int, *, alias: str = PRODUCTION, force: str | None = None, progress: Progress | None = None
) -> Comparison | None:
    """Point ``alias`` at version ``new`` unless it is worse than what the alias names now; ``force`` is the reason to do it anyway.

    Other aliases than ``production`` are set without a comparison: they promise nothing to a client.

    Raises:
        ScenariumError: SCN-5006 (worse), SCN-5011 (no production yet, and below the floor), SCN-5007 (cannot be compared), SCN-5002, SCN-5003,
            SCN-5116 (an imported version with other tensors).
    """
    manifest = store.open(scenario.name, new).manifest
    current = store.aliases(scenario.name)["aliases"].get(alias)
    comparison = None
    if alias == PRODUCTION and force is None:
        if current is None:
            _above_floor(scenario, manifest)
        elif current != new and scenario.plugin.generic and not manifest.data:  # imported: no rows were held out, so nothing can be measured
            same_tensors(store.manifest(scenario.name, current), manifest)
        elif current != new:
            comparison = compare(scenario, store, current, new, progress=progress)
            if comparison.worse:
                raise ScenariumError(
                    "SCN-5006",
                    name=scenario.name,
                    old=current,
                    new=new,
                    metric=comparison.metric.name,
                    old_value=comparison.old_value,
                    new_value=comparison.new_value,
                    rows=comparison.rows,
                    difference=comparison.text(),
                )
    elif alias == PRODUCTION:
        from scenarium.core import acceptance

        acceptance.check_plugin(scenario, manifest)  # no reason makes an unreadable version serve
    reason = force or (comparison.text() if comparison else "promoted")
    store.set_alias(scenario.name, alias, new, reason, forced=force is not None)
    return comparison


def same_tensors(old: Manifest, new: Manifest) -> None:
    """Refuse a version whose tensors differ, where nothing else about two versions can be compared.

    Raises:
        ScenariumError: SCN-5116.
    """
    if (old.signature, old.request_schema, old.response_schema) != (new.signature, new.request_schema, new.response_schema):
        raise ScenariumError("SCN-5116", name=old.scenario, old=old.version, new=new.version or "-")


def floor(manifest: Manifest) -> tuple[Words, float] | None:
    """What a first version must reach by its primary metric: the metric's own floor, else the baseline's value; its name and value."""
    metric = manifest.metric
    if metric.floor is not None:
        return Words("the floor", "最低要求"), metric.floor
    if manifest.baseline and metric.name in manifest.baseline.metrics:
        return Words(manifest.baseline.name, manifest.baseline.name), manifest.baseline.metrics[metric.name]
    return None


def reaches_floor(manifest: Manifest) -> bool:
    """Whether a version's held-out value is at least its floor."""
    value, least = manifest.metrics.get(manifest.metric.name), floor(manifest)
    return value is not None and (least is None or value == least[1] or manifest.metric.better(value, least[1]))


def _above_floor(scenario: Scenario, manifest: Manifest) -> None:
    least = floor(manifest)
    if least and not reaches_floor(manifest):
        value = manifest.metrics.get(manifest.metric.name, math.nan)
        raise ScenariumError(
            "SCN-5011", name=scenario.name, new=manifest.version, metric=manifest.metric.name, value=value, floor_name=least[0], floor=least[1]
        )


def rollback(store: Store, name: str, number: int | None = None, *, alias: str = PRODUCTION, reason: str = "rollback") -> tuple[int | None, int]:
    """Return ``alias`` to the version before it, or to ``number``: (from, to). No model is loaded, so it takes milliseconds.

    Raises:
        ScenariumError: SCN-5012 (nothing to return to), SCN-5001 (no such version).
    """
    target = store.previous(name, alias) if number is None else store.resolve(name, number)
    if target is None:
        raise ScenariumError("SCN-5012", name=name, alias=alias)
    current = store.aliases(name)["aliases"].get(alias)
    store.set_alias(name, alias, target, reason, action="rollback")
    return current, target
