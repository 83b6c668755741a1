"""``scenarium import``: a model that exists already becomes a version in the store, served by the built-in plugin ``tensor_model``.

Everything is made and tried in a scratch folder; the store is touched when nothing can go wrong any more, so what cannot be imported leaves
nothing behind.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from scenarium.core.progress import Progress
from scenarium.core.registry import TENSOR_MODEL, Registry, Scenario
from scenarium.core.runtime import STATE, Runtime
from scenarium.core.store import PRODUCTION, Store, Version
from scenarium.core.tensor_model import TensorModelConfig, TensorScenario
from scenarium.core.triton_repository import CHECKED

LARGEST_ANSWER = 1 << 20
"""Bytes of the sample's answer up to which it is kept in the manifest."""


@dataclass(frozen=True)
class Imported:
    """What an import gave."""

    version: Version
    production: bool
    """Whether the version is production now."""
    notes: dict[str, str] = field(default_factory=dict)
    """What was found out on the way: the tags of the manifest."""


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
        manifest = _describe(Scenario(name, TENSOR_MODEL, registry.settings, registry.extensions), folder, model, request, notes)
        aliases: dict[str, int] = store.aliases(name)["aliases"]
        if promote and PRODUCTION in aliases:
            same_tensors(store.manifest(name, aliases[PRODUCTION]), manifest)
        with store.draft(name) as draft:
            for path in folder.iterdir():
                shutil.move(path, draft / path.name)
            version = store.commit(name, draft, manifest)
    imported.note(store, name, TENSOR_MODEL.name)
    if promote or PRODUCTION not in aliases:
        store.set_alias(name, PRODUCTION, version.number, f"imported from {source}", action="promote" if PRODUCTION in aliases else "first")
    return Imported(version, store.aliases(name)["aliases"].get(PRODUCTION) == version.number, notes)


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


def _describe(scenario: Scenario, folder: Path, model: TensorModelConfig, inputs: dict[str, Any] | None, notes: dict[str, str]) -> Any:
    """The manifest; the sample is answered by the path that serves it."""
    config = TensorScenario.model_validate({**scenario.config.model_dump(), "model": model.model_dump()})
    scenario = scenario.with_config(config)
    (folder / STATE).write_text("{}", encoding="utf8")
    runtime = Runtime(scenario, {}, folder)
    try:
        cls: type[BaseModel] = runtime.schema.request
        sample = decode(json.dumps({"inputs": inputs}).encode(), "application/json", cls) if inputs else scenario.hook.sample(config=config)
        answer = runtime.predict([sample])[0]
        if isinstance(answer, Exception):
            raise answer
        manifest = pipeline.describe(runtime, sample, answer, data_origin="unknown", exports=[EXPORT], tags=notes)
        if len(json.dumps(manifest.answer)) > LARGEST_ANSWER:
            manifest.answer = None
            notes["sample"] = "its answer is too large to be kept and compared on load"
            manifest.tags = dict(notes)
        return manifest
    finally:
        runtime.close()
