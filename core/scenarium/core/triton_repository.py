"""``models/``: a Triton model repository derived from the store, beside its ``scenarios/``.

It holds the versions that an alias names and that have a checked ONNX export or are no tensor function (Triton's python backend asks a process of ours
for whole answers), those that gateways may still ask for after a change (``_kept``), and
nothing half-made: one bad folder stops a stock Triton. A
version's folder is made elsewhere and renamed into place, ``config.pbtxt`` is replaced atomically and names the versions to
serve (``version_policy { specific }``), and only then folders that it no longer names go. On an object store, which cannot
rename, the order is the same: files, configuration, removal.

Configuration format: Triton Inference Server, ``model_config.proto``.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenarium.core.errors import ScenariumError
from scenarium.core.manifest import Manifest
from scenarium.core.triton.configuration import configuration
from scenarium.core.triton.configuration import torchscript as of_torchscript

if TYPE_CHECKING:
    from scenarium.core.registry import Scenario
    from scenarium.core.store import Store

EXPORT = "model.onnx"
CONFIG = "config.pbtxt"
MODEL = Path(__file__).parent / "triton" / "model.py"
"""The model's file of a scenario that is no tensor function."""
CHECKED = "checked"
"""The manifest's tag ``export`` of a version whose export was compared with the trained model (``scenarium.core.exports``)."""

HOLD_S = 10.0
"""Seconds in which gateways change over: they look at the store every second, and start workers of the other version."""
_pending: dict[tuple[str, str], threading.Timer] = {}
"""By store and scenario: what takes a version that is kept for gateways out of the repository."""


def root(store: Store) -> str:
    """The folder (or fsspec path) of the Triton repository."""
    return f"{store.root}/models"


def export(store: Store, name: str, ref: str | int, out: Path, scenario: Scenario | None = None) -> tuple[Path, str]:
    """Copy a version as an entry of a Triton repository into ``out``. Its folder, which replaces an entry that is there, and what was measured of the export.

    With ``scenario`` the entry is TorchScript, traced and compared now; else it is the checked ONNX export.

    It is self-contained, except that of a scenario that is no tensor function, which names store and interpreter.

    Raises:
        ScenariumError: SCN-5017 (it has no checked export), SCN-5018 (something else is there), SCN-5008 (``out`` cannot be written), SCN-5001,
            SCN-5002, SCN-5004, SCN-5010; with ``scenario`` as ``scenarium.core.torchscript``.
    """
    from scenarium.core import torchscript

    version = store.open(name, ref)
    manifest = version.manifest
    if scenario is None and not _servable(manifest):
        raise ScenariumError("SCN-5017", name=name, version=version.number, reason=manifest.tags.get("export", "none"))
    folder = out / name
    if folder.exists() and not (folder / CONFIG).is_file():
        raise ScenariumError("SCN-5018", folder=folder)
    made = out / f".{name}.{uuid.uuid4().hex}"
    try:
        (made / str(version.number)).mkdir(parents=True)
        if scenario:
            told = torchscript.write(scenario, version, made / str(version.number) / torchscript.FILE)
            text = of_torchscript(name, manifest)
        else:
            for file, source in _files(manifest, version.folder).items():
                shutil.copy2(source, made / str(version.number) / file)
            told, text = manifest.tags.get("parity", ""), configuration(name, {version.number: manifest}, _place(store))
        (made / CONFIG).write_text(text, encoding="utf8")
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(made, folder)
    except OSError as fault:
        raise ScenariumError("SCN-5008", file=folder, name=name, reason=str(fault)) from fault
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder, told


def _servable(manifest: Manifest) -> bool:
    return not manifest.inputs or (EXPORT in manifest.exports and manifest.tags.get("export") == CHECKED)


def _place(store: Store) -> str:
    return store.root if store.local else store.url


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
    record = store.aliases(name)
    kept, wait = _kept(record)
    served = _served(store, name, record["aliases"], kept)
    _later(store, name, wait if any(number in served for number in kept) else 0.0)
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


def _kept(record: dict[str, Any]) -> tuple[list[int], float]:
    """Versions beside the aliased ones that gateways may still ask Triton for, and the seconds until one of them must go (0: none must).

    The one before production stays for good where its number is lower: a request without a version gets the highest, so production's answer. What an
    alias named until less than ``HOLD_S`` ago stays so long, also where its number is higher: after a rollback, Triton and the gateways change over late
    rather than lose a request.
    """
    kept: list[int] = []
    wait, production, now = 0.0, record["aliases"].get("production"), datetime.now(UTC)
    named, latest = set(record["aliases"].values()), True
    for entry in reversed(record["history"]):
        before, of_production = entry["from"], entry["alias"] == "production" and entry["from"] != entry["to"]
        left = min(HOLD_S, HOLD_S - (now - datetime.fromisoformat(entry["at"])).total_seconds())
        if before is not None and before not in named:
            if of_production and latest and before < production:
                kept.append(before)
            elif left > 0 and before not in kept:
                kept.append(before)
                wait = max(wait, left)
        latest = latest and not of_production
        if left <= 0 and not latest:
            break
    return kept, wait


def _later(store: Store, name: str, seconds: float) -> None:
    """Derive the scenario's folder again then, in place of what was to come before; 0: never."""
    key = (store.url, name)
    if before := _pending.pop(key, None):
        before.cancel()
    if seconds:
        _pending[key] = timer = threading.Timer(seconds + 0.05, _again, (store, name))
        timer.daemon = True
        timer.start()


def _again(store: Store, name: str) -> None:
    """What fails here is made good by the next change of an alias."""
    _pending.pop((store.url, name), None)
    with contextlib.suppress(OSError, ScenariumError):
        if store.fs.exists(store.path(name)):
            with store.lock(name):
                derive(store, name)


def finish() -> None:
    """Wait until this process has nothing more to take out of a repository. One that ends without it takes it out as it ends."""
    for timer in list(_pending.values()):
        timer.join()


def pending() -> bool:
    """Whether ``finish`` would wait."""
    return bool(_pending)


@atexit.register
def _now() -> None:
    global HOLD_S
    HOLD_S = 0.0
    for timer in list(_pending.values()):
        timer.cancel()
        timer.function(*timer.args)


def _served(store: Store, name: str, aliases: dict[str, int], kept: list[int]) -> dict[int, Manifest]:
    """The aliased versions and the kept ones with an export whose tensors are those of the first of them: one folder has one configuration.

    ``production`` goes first; a candidate with other tensors can be tried in the gateway, not in the same Triton model.
    """
    there = set(store.versions(name)) if kept else set()
    served: dict[int, Manifest] = {}
    for number in [*(aliases[alias] for alias in sorted(aliases, key=lambda a: (a != "production", a))), *(number for number in kept if number in there)]:
        if number in served:
            continue
        manifest = store.manifest(name, number)
        if not _servable(manifest) or (served and manifest.signature != next(iter(served.values())).signature):
            continue
        served[number] = manifest
    return served


def _files(manifest: Manifest, folder: Path) -> dict[str, Path]:
    """The files of a version's folder in the repository, and what each is made from: the export and its external data, or ``model.py``."""
    if not manifest.inputs:
        return {MODEL.name: MODEL}
    return {file: folder / file for file in manifest.files if file == EXPORT or file.startswith((f"{EXPORT}.", "model.onnx_"))}


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
            checked = store.open(name, number).folder if manifest.inputs else Path()  # the python backend's process checks what it loads
            (made / str(number)).mkdir()
            for file, source in _files(manifest, checked).items():
                _link(source, made / str(number) / file)
        (made / CONFIG).write_text(configuration(name, served, _place(store)), encoding="utf8")
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
    if not manifest.inputs:
        return (folder / MODEL.name).is_file() and (folder / MODEL.name).read_bytes() == MODEL.read_bytes()  # another release may have another
    return all((folder / file).is_file() and (folder / file).stat().st_size == manifest.files[file].size for file in _files(manifest, folder))


def _derive_remote(store: Store, name: str, folder: str, served: dict[int, Manifest]) -> None:
    present = _children(store, folder)
    for number, manifest in served.items():
        if not manifest.inputs:
            store.write(f"{folder}/{number}/{MODEL.name}", MODEL.read_bytes())
        elif str(number) not in present:
            for file in _files(manifest, Path()):
                store.fs.cp_file(store.path(name, number, file), f"{folder}/{number}/{file}")
    store.write(f"{folder}/{CONFIG}", configuration(name, served, _place(store)).encode())


def _link(source: Path, target: Path) -> None:
    if source == MODEL:  # of the installation, which an upgrade may write over
        shutil.copyfile(source, target)
        return
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
