"""From data to a committed version: prepare, fit, train, evaluate, compare with the baseline, export, report, commit.

Reads top to bottom in ``train``. No torch here: the shared trainer is one implementation of the hook ``train``.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from scenarium.core import datasets, exports, report
from scenarium.core.compare import reaches_floor
from scenarium.core.errors import ScenariumError
from scenarium.core.manifest import Manifest, PluginRef
from scenarium.core.progress import Progress
from scenarium.core.registry import Scenario
from scenarium.core.runtime import STATE, Runtime
from scenarium.core.store import PRODUCTION, Store, Version
from scenarium.core.tracking import Tracker
from scenarium.core.types import Data


@dataclass
class Run:
    """One training in progress, as the hook ``train`` sees it."""

    scenario: Scenario
    out: Path
    """Folder of the version being built; what is written here is committed."""
    work: Path
    """Folder that outlives a killed run: checkpoints."""
    state: dict[str, Any]
    """What ``fit`` returned; written to the version after training."""
    resume: bool = False
    """Continue from the checkpoint in ``work`` if there is one."""
    progress: Progress = field(default_factory=Progress)
    tracker: Tracker = field(default_factory=Tracker)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Metric to (step, value), for the report."""
    exports: list[str] = field(default_factory=list)
    """File names of the exports in ``out``."""

    def log(self, step: int, **metrics: float) -> None:
        """Record figures of one step, for the report and the tracker."""
        for name, value in metrics.items():
            self.curves.setdefault(name, []).append((step, float(value)))
        self.tracker.log(step, metrics)


@dataclass(frozen=True)
class Trained:
    """What a training gave."""

    version: Version
    became_production: bool
    seconds: float


def train(
    scenario: Scenario, store: Store, work: Path, *, resume: bool = False, progress: Progress | None = None, tags: dict[str, str] | None = None
) -> Trained:
    """Train a scenario and commit the version.

    ``work`` is the folder for interrupted runs; each set of settings and data has its own folder in it.

    Raises:
        ScenariumError: SCN-3001 (no model), SCN-3009 (held-out metrics that are not finite; the run's folder is kept), and what the hooks raise.
    """
    progress = progress or Progress()
    began = time.monotonic()
    hook, config = scenario.hook, scenario.config
    progress.note(f"preparing the data of {scenario.name}")
    data = datasets.prepare(scenario, progress)
    state = dict(hook.fit(config=config, rows=data.train))
    run_folder = work / scenario.name / _fingerprint(scenario, data)
    with store.draft(scenario.name) as draft, Tracker.open(scenario, data.manifest, progress) as tracker:
        run = Run(scenario, draft, run_folder, state, resume, progress, tracker)
        run.work.mkdir(parents=True, exist_ok=True)
        if not hook.train(config=config, data=data, run=run):
            raise ScenariumError("SCN-3001", name=scenario.name)
        (draft / STATE).write_text(json.dumps(run.state, ensure_ascii=False), encoding="utf8")
        manifest = _measure(run, data, store, tags or {})
        version = store.commit(scenario.name, draft, manifest)
        tracker.finish(manifest, version.folder)
    shutil.rmtree(run_folder, ignore_errors=True)
    first = PRODUCTION not in store.aliases(scenario.name)["aliases"]
    promoted = first and reaches_floor(manifest)
    if promoted:
        store.set_alias(scenario.name, PRODUCTION, version.number, "the first version that reached its floor", action="first")
    return Trained(version, promoted, time.monotonic() - began)


def _measure(run: Run, data: Data, store: Store, tags: dict[str, str]) -> Manifest:
    """Evaluate the trained files on the held-out rows, write the report, and describe it all."""
    scenario, config, hook = run.scenario, run.scenario.config, run.scenario.hook
    run.progress.note(f"measuring on {len(data.test)} held-out rows")
    # The measurement uses the trained weights themselves, whatever engine will serve them.
    own = config.model_copy(update={"serve": config.serve.model_copy(update={"engine": "torch"})})
    runtime = Runtime(scenario.with_config(own), run.state, run.out)
    try:
        evaluation = hook.evaluate(config=config, runtime=runtime, rows=data.test)
        baseline = hook.baseline(config=config, train=data.train, test=data.test)
        _refuse_undefined(run, evaluation.metrics, baseline.metrics if baseline else {})
        sample = hook.sample(config=config)
        answer = runtime.predict([sample])[0]
        if isinstance(answer, Exception):
            raise answer
        figures = report.plots(lambda: hook.report(config=config, rows=evaluation.rows, answers=evaluation.answers))
        tags = {**tags, **exports.write(run, runtime, evaluation.rows)}
    finally:
        runtime.close()
    manifest = describe(
        runtime,
        sample,
        answer,
        metrics=evaluation.metrics,
        baseline=baseline,
        data=data.manifest,
        data_origin=data.origin,
        exports=run.exports,
        tags=tags,
    )
    manifest.config = config.model_dump(mode="json")
    report.write(run.out / "report.html", manifest, run.curves, figures)
    return manifest


def describe(runtime: Runtime, sample: BaseModel, answer: BaseModel, **found: Any) -> Manifest:
    """The manifest of a version in the making, which ``runtime`` has loaded; ``found``: the fields of it that only its maker knows."""
    scenario, traits, signature = runtime.scenario, runtime.traits, runtime.signature
    return Manifest(
        scenario=scenario.name,
        created=datetime.now(UTC),
        plugin=_plugin_ref(scenario),
        config=scenario.config.model_dump(mode="json"),
        inputs=list(signature.inputs),
        outputs=list(signature.outputs),
        request_schema=runtime.schema.request.model_json_schema(),
        response_schema=runtime.schema.response.model_json_schema(mode="serialization"),
        sample=sample.model_dump(mode="json", exclude_unset=True),
        answer=answer.model_dump(mode="json"),
        pure=traits.pure,
        streams=traits.streams,
        concurrency=traits.concurrency,
        max_batch_size=traits.max_batch_size,
        route_key=traits.route_key,
        preload=list(traits.preload),
        tolerance=traits.tolerance,
        disagreement=traits.disagreement,
        metric=scenario.hook.metric(config=scenario.config),
        packages=_packages(scenario),
        python=platform.python_version(),
        card=cards(scenario),
        **found,
    )


def _refuse_undefined(run: Run, metrics: Mapping[str, float], baseline: Mapping[str, float]) -> None:
    """JSON has no NaN and no infinity, and neither can be compared with the next version's value."""
    named = [*metrics.items(), *((f"{name} (baseline)", value) for name, value in baseline.items())]
    undefined = [f"{name} = {value}" for name, value in named if not math.isfinite(value)]
    if undefined:
        raise ScenariumError("SCN-3009", name=run.scenario.name, metrics=", ".join(undefined), work=run.work)


def _fingerprint(scenario: Scenario, data: Data) -> str:
    """Names the run by what must not change on resume: settings and data."""
    config = scenario.config.model_dump(mode="json", exclude={"serve"})
    return hashlib.sha256(json.dumps([config, data.manifest.get("sha256")], sort_keys=True).encode()).hexdigest()[:16]


def _plugin_ref(scenario: Scenario) -> PluginRef:
    plugin = scenario.plugin
    release = re.match(r"(\d+)\.(\d+)", plugin.version)
    major, minor = (int(release[1]), int(release[2])) if release else (0, 0)
    # Semantic versioning: below 1.0 every minor release may break what an older one stored.
    upper = f"{major + 1}" if major else f"0.{minor + 1}"
    return PluginRef(name=plugin.name, distribution=plugin.distribution, version=plugin.version, loadable=f">={major}.{minor},<{upper}")


def _packages(scenario: Scenario) -> dict[str, str]:
    """Versions of the plugin's direct requirements and of scenarium itself."""
    found: dict[str, str] = {}
    names = ["scenarium", scenario.plugin.distribution, "torch", "numpy", "transformers", "tokenizers", "torchvision", "pillow", "onnxruntime"]
    for name in names:
        try:
            found[name] = distribution(name).version
        except PackageNotFoundError:
            continue
    return found


def cards(scenario: Scenario) -> dict[str, str]:
    """The plugin's model cards: ``card.en.md`` and ``card.zh.md`` beside its module."""
    file = getattr(scenario.implementation, "__file__", None)
    if not file:
        return {}
    folder = Path(file).parent
    return {lang: path.read_text(encoding="utf8") for lang in ("en", "zh") if (path := folder / f"card.{lang}.md").is_file()}
