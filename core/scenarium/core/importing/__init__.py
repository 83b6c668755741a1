"""``scenarium import``: a model that exists already becomes a version in the store, served by the built-in plugin ``tensor_model``, or, where it comes
from transformers, by the plugin ``transformers_pipeline``.

Everything is made and tried in a scratch folder; the store is touched when nothing can go wrong any more, so what cannot be imported leaves
nothing behind.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from scenarium.core import imported, pipeline
from scenarium.core.bodies import decode
from scenarium.core.compare import same_tensors
from scenarium.core.errors import ScenariumError
from scenarium.core.exports import EXPORT
from scenarium.core.importing import onnx_file, sources
from scenarium.core.importing.sources import Given
from scenarium.core.manifest import Manifest
from scenarium.core.progress import Progress
from scenarium.core.registry import TENSOR_MODEL, Registry, Scenario
from scenarium.core.runtime import STATE, Runtime
from scenarium.core.settings import Flat, Origin, Settings
from scenarium.core.store import PRODUCTION, Store, Version
from scenarium.core.tensor_model import TensorScenario
from scenarium.core.triton_repository import CHECKED
from scenarium.core.types import Data

PIPELINE = "transformers_pipeline"
"""The plugin that serves transformers' pipelines."""
LARGEST_ANSWER = 1 << 20
"""Bytes of the sample's answer up to which it is kept in the manifest."""


@dataclass(frozen=True)
class Imported:
    """What an import gave."""

    version: Version
    production: bool
    """Whether the version is production now."""


def import_model(
    source: str,
    name: str,
    registry: Registry,
    store: Store,
    *,
    promote: bool = False,
    given: Sequence[Given] = (),
    sample: Path | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Register ``source`` as a version of the scenario ``name``: production if it is the first, or with ``promote``.

    ``given`` tells the inputs of a PyTorch file that does not tell them itself; ``sample`` is a file with one request.

    Raises:
        ScenariumError: SCN-51xx, SCN-7601 (the name).
    """
    progress = progress or Progress()
    check_name(registry, store, name)
    with tempfile.TemporaryDirectory(prefix="scenarium-import-") as scratch:
        folder = Path(scratch) / "version"
        folder.mkdir()
        found = sources.fetch(source, folder, Path(scratch), given, progress)
        request = _read_sample(sample)
        progress.note("running the model on " + ("the sample" if request else "generated inputs"))
        known = onnx_file.known_row(folder / EXPORT, request, source)
        model = onnx_file.inspect(folder / EXPORT, source, known)
        if found.max_batch_size:
            model = model.model_copy(update={"max_batch_size": found.max_batch_size})
        notes = {"source": source, **found.notes, "export": CHECKED if model.batch == "free" else f"kept out of models/: its batch axis is {model.batch!r}"}
        scenario = Scenario(name, TENSOR_MODEL, registry.settings, registry.extensions)
        config = TensorScenario.model_validate({**scenario.config.model_dump(), "model": model.model_dump()})
        manifest = _describe(scenario.with_config(config), folder, request, notes)
        _same_clients(store, name, manifest, promote)
        version = _commit(store, name, folder, manifest)
    return _register(store, version, promote, source)


def import_pipeline(
    source: str, task: str, name: str, registry: Registry, store: Store, *, promote: bool = False, progress: Progress | None = None
) -> Imported:
    """Register a transformers model (a hub name or a folder) as a version that answers by its pipeline ``task``.

    Raises:
        ScenariumError: SCN-5118 (the plugin for it is not installed), SCN-0002, SCN-5119, SCN-5120 (the model), SCN-1004 (no such task), SCN-7601.
    """
    progress = progress or Progress()
    plugin = registry.plugins.get(PIPELINE)
    if plugin is None:
        raise ScenariumError("SCN-5118", plugin=PIPELINE, dashed=PIPELINE.replace("_", "-"))
    check_name(registry, store, name, PIPELINE)
    local = Path(source).expanduser()
    chosen = {"task": task, "source": str(local.resolve()) if local.is_dir() else source}
    flat: Flat = dict(registry.settings.flat)
    flat |= {("scenarios", name, "model", key): (value, Origin("--set", f"--{key}")) for key, value in chosen.items()}
    scenario = Scenario(name, plugin, Settings(flat, registry.settings.path), registry.extensions)
    with tempfile.TemporaryDirectory(prefix="scenarium-import-") as scratch:
        folder = Path(scratch) / "version"
        folder.mkdir()
        run = pipeline.Run(scenario, folder, Path(scratch), {}, progress=progress)
        progress.note(f"reading {source}")
        scenario.hook.train(config=scenario.config, data=Data([], [], [], "real", {}), run=run)
        manifest = _describe(scenario, folder, None, {"source": source, "task": task, "export": "none: a pipeline is no tensor function"})
        _same_clients(store, name, manifest, promote)
        version = _commit(store, name, folder, manifest)
    return _register(store, version, promote, source)


def _same_clients(store: Store, name: str, manifest: Manifest, promote: bool) -> None:
    aliases = store.aliases(name)["aliases"]
    if promote and PRODUCTION in aliases:
        same_tensors(store.manifest(name, aliases[PRODUCTION]), manifest)


def _commit(store: Store, name: str, folder: Path, manifest: Manifest) -> Version:
    """Move what was made and tried into the store."""
    with store.draft(name) as draft:
        for path in folder.iterdir():
            shutil.move(path, draft / path.name)
        return store.commit(name, draft, manifest)


def _register(store: Store, version: Version, promote: bool, source: str) -> Imported:
    """Make it known, and production where it is the first or shall be."""
    name = version.manifest.scenario
    imported.note(store, name, version.manifest.plugin.name)
    first = PRODUCTION not in store.aliases(name)["aliases"]
    if promote or first:
        store.set_alias(name, PRODUCTION, version.number, f"imported from {source}", action="first" if first else "promote")
    return Imported(version, promote or first)


def check_name(registry: Registry, store: Store, name: str, plugin: str = TENSOR_MODEL.name) -> None:
    """Refuse a name that cannot be a scenario's, or that is a scenario of another plugin.

    Raises:
        ScenariumError: SCN-7601, SCN-5111.
    """
    from scenarium.core.names import check

    check(name)
    taken = registry.names().get(name)
    if name in registry.plugins:
        raise ScenariumError("SCN-5111", name=name, plugin=name)
    if taken is None and (numbers := store.versions(name)):
        taken = store.manifest(name, numbers[-1]).plugin.name
    if taken not in (None, plugin):
        raise ScenariumError("SCN-5111", name=name, plugin=taken)


def _read_sample(path: Path | None) -> dict[str, Any] | None:
    """The inputs of one request in a JSON file."""
    if path is None:
        return None
    shown = '{"inputs": {"x": [...]}}'
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))["inputs"]
        if not isinstance(found, dict):
            raise TypeError("'inputs' is no object")
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise ScenariumError("SCN-5114", file=path, reason=f"{type(fault).__name__}: {fault}", sample=shown) from fault
    return found


def _describe(scenario: Scenario, folder: Path, inputs: dict[str, Any] | None, notes: dict[str, str]) -> Manifest:
    """The manifest; the sample is answered by the path that serves it."""
    config = scenario.config
    (folder / STATE).write_text("{}", encoding="utf8")
    runtime = Runtime(scenario, {}, folder)
    try:
        cls: type[BaseModel] = runtime.schema.request
        sample = decode(json.dumps({"inputs": inputs}).encode(), "application/json", cls) if inputs else scenario.hook.sample(config=config)
        answer = runtime.predict([sample])[0]
        if isinstance(answer, Exception):
            raise answer
        manifest = pipeline.describe(runtime, sample, answer, data_origin="unknown", exports=[EXPORT] if (folder / EXPORT).is_file() else [], tags=notes)
        if len(json.dumps(manifest.answer)) > LARGEST_ANSWER:
            manifest.answer = None
            manifest.tags["sample"] = "its answer is too large to be kept and compared on load"
        return manifest
    finally:
        runtime.close()
