"""``models/``: a Triton model repository derived from the store, beside its ``scenarios/``.

It holds the aliased versions that have a checked ONNX export, and nothing half-made: one bad folder stops a stock Triton. A
version's folder is made elsewhere and renamed into place, ``config.pbtxt`` is replaced atomically and names the versions to
serve (``version_policy { specific }``), and only then folders that it no longer names go. On an object store, which cannot
rename, the order is the same: files, configuration, removal.

Configuration format: Triton Inference Server, ``model_config.proto``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scenarium.core.errors import ScenariumError
from scenarium.core.manifest import Manifest
from scenarium.core.tensors import DATATYPES
from scenarium.core.types import TensorSpec

if TYPE_CHECKING:
    from scenarium.core.store import Store

EXPORT = "model.onnx"
CONFIG = "config.pbtxt"
CHECKED = "checked"
"""The manifest's tag ``export`` of a version whose export was compared with the trained model (``scenarium.core.exports``)."""


def root(store: Store) -> str:
    """The folder (or fsspec path) of the Triton repository."""
    return f"{store.root}/models"


def export(store: Store, name: str, ref: str | int, out: Path) -> Path:
    """Copy a version as an entry of a Triton repository into ``out``, self-contained: no link to the store. Its folder, which replaces one that is there.

    Raises:
        ScenariumError: SCN-5017 (it has no checked export), SCN-5008 (``out`` cannot be written), SCN-5001, SCN-5002, SCN-5004, SCN-5010.
    """
    version = store.open(name, ref)
    manifest = version.manifest
    if not _exported(manifest):
        raise ScenariumError("SCN-5017", name=name, version=version.number, reason=manifest.tags.get("export", "none"))
    folder = out / name
    made = out / f".{name}.{uuid.uuid4().hex}"
    try:
        (made / str(version.number)).mkdir(parents=True)
        for relative in _files(manifest):
            shutil.copy2(version.folder / relative, made / str(version.number) / relative)
        (made / CONFIG).write_text(configuration(name, {version.number: manifest}), encoding="utf8")
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(made, folder)
    except OSError as fault:
        raise ScenariumError("SCN-5008", file=folder, name=name, reason=str(fault)) from fault
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _exported(manifest: Manifest) -> bool:
    return EXPORT in manifest.exports and manifest.tags.get("export") == CHECKED and bool(manifest.inputs)


def rebuild(store: Store) -> list[str]:
    """Derive every scenario anew and remove folders of scenarios that are gone; the names that are in the repository now."""
    names = store.scenarios()
    for stray in sorted(set(_children(store, root(store))) - set(names)):
        _discard(store, f"{root(store)}/{stray}", stray)
    for name in names:
        with store.lock(name):
            derive(store, name)
    return sorted(set(_children(store, root(store))))


def derive(store: Store, name: str) -> list[int]:
    """Bring one scenario's folder in line with its aliases; the versions that it holds now. The caller holds the scenario's lock.

    Raises:
        ScenariumError: SCN-5002 (an aliased version is damaged), SCN-5008 (the folder cannot be written).
    """
    served = _served(store, name)
    folder = f"{root(store)}/{name}"
    try:
        if not served:
            if store.fs.exists(folder):
                _discard(store, folder, name)
            return []
        numbers = sorted(served)
        if store.local:
            _derive_local(store, name, folder, served)
        else:
            _derive_remote(store, name, folder, served)
        for child in _children(store, folder):
            if child.isdigit() and int(child) not in numbers:
                _discard(store, f"{folder}/{child}", name)
        return numbers
    except OSError as fault:
        raise ScenariumError("SCN-5008", file=folder, name=name, reason=str(fault)) from fault


def _served(store: Store, name: str) -> dict[int, Manifest]:
    """The aliased versions with an export whose tensors are those of the first of them: one folder has one configuration.

    ``production`` goes first; a candidate with other tensors can be tried in the gateway, not in the same Triton model.
    """
    aliases: dict[str, int] = store.aliases(name)["aliases"]
    served: dict[int, Manifest] = {}
    for alias in sorted(aliases, key=lambda a: (a != "production", a)):
        number = aliases[alias]
        manifest = store.manifest(name, number)
        if number in served or not _exported(manifest):
            continue
        if served and manifest.signature != next(iter(served.values())).signature:
            continue
        served[number] = manifest
    return served


def _files(manifest: Manifest) -> list[str]:
    """The export and its external data."""
    return [relative for relative in manifest.files if relative == EXPORT or relative.startswith(f"{EXPORT}.") or relative.startswith("model.onnx_")]


def _derive_local(store: Store, name: str, folder: str, served: dict[int, Manifest]) -> None:
    target = Path(folder)
    staging = _staging(store, name)
    shutil.rmtree(staging, ignore_errors=True)  # what a killed process left
    made = staging / "made"
    made.mkdir(parents=True)
    begun = (target / CONFIG).is_file()
    try:
        for number, manifest in served.items():
            if begun and _whole(target / str(number), manifest):
                continue
            version = store.open(name, number)
            (made / str(number)).mkdir()
            for relative in _files(manifest):
                _link(version.folder / relative, made / str(number) / relative)
        (made / CONFIG).write_text(configuration(name, served), encoding="utf8")
        if not begun:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():  # without a configuration it is not loadable, whoever made it
                _discard(store, folder, name)
            os.rename(made, target)
            return
        for number in served:
            if (made / str(number)).is_dir():
                if (target / str(number)).exists():
                    _discard(store, f"{folder}/{number}", name)
                os.rename(made / str(number), target / str(number))
        os.replace(made / CONFIG, target / CONFIG)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _whole(folder: Path, manifest: Manifest) -> bool:
    return all((folder / file).is_file() and (folder / file).stat().st_size == manifest.files[file].size for file in _files(manifest))


def _derive_remote(store: Store, name: str, folder: str, served: dict[int, Manifest]) -> None:
    present = _children(store, folder)
    for number, manifest in served.items():
        if str(number) not in present:
            for relative in _files(manifest):
                store.fs.cp_file(store.path(name, number, relative), f"{folder}/{number}/{relative}")
    store.write(f"{folder}/{CONFIG}", configuration(name, served).encode())


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copy2(source, target)


def _children(store: Store, folder: str) -> list[str]:
    try:
        return [entry.rstrip("/").rpartition("/")[2] for entry in store.fs.ls(folder, detail=False)]
    except FileNotFoundError:
        return []


def _staging(store: Store, name: str) -> Path:
    """Where folders of one scenario are made and unmade, on the same disk as the repository; its writer holds the scenario's lock."""
    return Path(store.root) / ".staging" / name


def _discard(store: Store, folder: str, name: str) -> None:
    """Take a folder out of the repository: at once where the disk can rename."""
    if not store.local:
        store.fs.rm(folder, recursive=True)
        return
    doomed = _staging(store, name) / uuid.uuid4().hex
    doomed.parent.mkdir(parents=True, exist_ok=True)
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
    with contextlib.suppress(OSError):
        doomed.parent.rmdir()  # where nothing else is being made there


def configuration(name: str, served: dict[int, Manifest]) -> str:
    """``config.pbtxt`` of one scenario. Batch axis left out, free axes -1, as Triton wants them."""
    manifest = next(iter(served.values()))
    versions = ", ".join(map(str, sorted(served)))
    return "\n".join(
        [
            f'name: "{name}"',
            'platform: "onnxruntime_onnx"',
            f"max_batch_size: {manifest.max_batch_size}",
            *_tensors("input", manifest.inputs),
            *_tensors("output", manifest.outputs),
            "dynamic_batching { }",
            f"version_policy {{ specific {{ versions: [ {versions} ] }} }}",
            *_warmup(manifest),
            "",
        ]
    )


def _warmup(manifest: Manifest) -> list[str]:
    """One row of the shapes that a held-out row had, run before the model counts as ready: the first pass is the slow one."""
    if "warmup" not in manifest.tags:
        return []
    shapes, inputs = json.loads(manifest.tags["warmup"]), []
    for spec in manifest.inputs:
        # Zero is a valid index of any table; numbers are drawn between 0 and 1.
        data = "random_data" if spec.dtype.startswith("float") else "zero_data"
        dims = ", ".join(map(str, shapes[spec.name])) or "1"
        inputs.append(f'inputs {{ key: "{spec.name}" value {{ data_type: TYPE_{DATATYPES[spec.dtype]} dims: [ {dims} ] {data}: true }} }}')
    return [f'model_warmup [ {{ name: "one row" batch_size: 1 {" ".join(inputs)} }} ]']


def _tensors(kind: str, specs: Sequence[TensorSpec]) -> list[str]:
    lines = []
    for spec in specs:
        # Triton knows no tensor without an axis beside the batch: one of length 1 is declared and reshaped away.
        dims, reshape = (", ".join(map(str, spec.shape)), "") if spec.shape else ("1", " reshape { shape: [ ] }")
        lines.append(f'{kind} [ {{ name: "{spec.name}" data_type: TYPE_{DATATYPES[spec.dtype]} dims: [ {dims} ]{reshape} }} ]')
    return lines
