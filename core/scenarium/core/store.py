"""Where versions live: ``scenarios/<name>/<n>/`` under any fsspec URL, and aliases that point at them.

On a local disk a version appears by one rename of a finished folder, so a killed process leaves nothing half-made; on an
object store, which cannot rename, ``manifest.json`` is written last and its presence is the commit. Writers on one disk are
kept apart by a file lock; an object store takes the exclusive creation of a marker for the number, and the last alias wins.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from filelock import FileLock, Timeout
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from scenarium.core.cache import cache_home
from scenarium.core.errors import ScenariumError
from scenarium.core.hashes import HashMemory, sha256
from scenarium.core.manifest import FORMAT, FileRef, Manifest

MANIFEST = "manifest.json"
ALIASES = "aliases.json"
PRODUCTION = "production"
CLAIM = ".claim"
"""Marker that takes a version number on an object store."""


@dataclass(frozen=True, slots=True)
class Version:
    """A committed version: its number, manifest, and a local folder with its files."""

    number: int
    manifest: Manifest
    folder: Path


class Store:
    """The versions and aliases of all scenarios under one URL."""

    def __init__(self, url: str, cache: Path | None = None) -> None:
        # Another process may write at any time, so no listing is remembered.
        self.fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        self.url = url
        self.root = root.rstrip("/")
        self.local = isinstance(self.fs, LocalFileSystem)
        self.cache = cache or cache_home() / "versions" / hashlib.sha256(url.encode()).hexdigest()[:16]

    def path(self, *parts: object) -> str:
        """The full path of something in the store."""
        return "/".join([self.root, "scenarios", *map(str, parts)])

    def lock(self, name: str) -> AbstractContextManager[Any]:
        """Keeps other writers of one scenario out, on a local disk."""
        if not self.local:
            return nullcontext()
        Path(self.path(name)).mkdir(parents=True, exist_ok=True)
        return FileLock(self.path(name, ".lock"))

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _numbers(self, name: str) -> list[int]:
        try:
            entries = self.fs.ls(self.path(name), detail=False)
        except FileNotFoundError:
            return []
        return sorted(int(leaf) for leaf in (entry.rstrip("/").rpartition("/")[2] for entry in entries) if leaf.isdigit())

    def versions(self, name: str) -> list[int]:
        """Numbers of the committed versions of a scenario, ascending."""
        return [number for number in self._numbers(name) if self.fs.exists(self.path(name, number, MANIFEST))]

    def scenarios(self) -> list[str]:
        """Names of the scenarios that have a folder."""
        try:
            return sorted(entry.rstrip("/").rpartition("/")[2] for entry in self.fs.ls(self.path(), detail=False))
        except FileNotFoundError:
            return []

    def manifest(self, name: str, number: int) -> Manifest:
        """The manifest of one version.

        Raises:
            ScenariumError: SCN-5001 (no such version), SCN-5002 (unreadable), SCN-5004 (written by a later release).
        """
        path = self.path(name, number, MANIFEST)
        try:
            text = self.fs.cat_file(path)
        except FileNotFoundError:
            known = ", ".join(map(str, self.versions(name))) or "-"
            raise ScenariumError("SCN-5001", name=name, version=number, known=known) from None
        try:
            found = json.loads(text)
            if found["format"] > FORMAT:
                raise ScenariumError("SCN-5004", file=path, name=name, version=number, format=found["format"], known=FORMAT)
            return Manifest.model_validate(found)
        except (ValueError, KeyError, TypeError, ValidationError) as fault:
            raise ScenariumError("SCN-5002", file=path, name=name, version=number) from fault

    def aliases(self, name: str) -> dict[str, Any]:
        """Alias to version number, ``history`` (who set what, when and why, the oldest first) and ``rollout`` (see ``rollouts``).

        Raises:
            ScenariumError: SCN-5009 (the file is no JSON).
        """
        try:
            found: dict[str, Any] = json.loads(self.fs.cat_file(self.path(name, ALIASES)))
        except FileNotFoundError:
            found = {"aliases": {}, "history": []}
        except ValueError as fault:
            raise ScenariumError("SCN-5009", file=self.path(name, ALIASES), name=name) from fault
        return found

    def resolve(self, name: str, ref: str | int = PRODUCTION) -> int:
        """The number behind an alias, ``latest``, or a number given as text.

        Raises:
            ScenariumError: SCN-4004 (nothing trained yet), SCN-5001 (no such version or alias), SCN-5010 (trained, but no production).
        """
        numbers = self.versions(name)
        if not numbers:
            raise ScenariumError("SCN-4004", name=name)
        if ref == "latest":
            return numbers[-1]
        number = int(ref) if str(ref).isdigit() else self.aliases(name)["aliases"].get(ref)
        if number in numbers:
            return int(number)
        if ref == PRODUCTION and number is None:
            raise ScenariumError("SCN-5010", name=name, latest=numbers[-1])
        raise ScenariumError("SCN-5001", name=name, version=ref, known=", ".join(map(str, numbers)))

    def previous(self, name: str, alias: str = PRODUCTION) -> int | None:
        """The version to which a rollback of ``alias`` would return: the one before it, past rollbacks undone."""
        stack: list[int] = []
        for entry in self.aliases(name)["history"]:
            if entry["alias"] != alias:
                continue
            if entry["action"] == "rollback" and entry["to"] in stack:
                while stack[-1] != entry["to"]:
                    stack.pop()
            elif not stack or stack[-1] != entry["to"]:
                stack.append(entry["to"])
        kept = set(self.versions(name))
        return next((number for number in reversed(stack[:-1]) if number in kept and number != stack[-1]), None)

    def open(self, name: str, ref: str | int = PRODUCTION) -> Version:
        """A version with a local folder whose files match their hashes. Hashes of files that did not change are remembered.

        Raises:
            ScenariumError: SCN-4004, SCN-5001, SCN-5002 (a file is missing or was changed), SCN-5004, SCN-5010.
        """
        number = self.resolve(name, ref)
        manifest = self.manifest(name, number)
        folder = Path(self.path(name, number)) if self.local else self._fetch(name, number, manifest)
        if changed := _changed(folder, manifest):
            if not self.local:  # the copy in the cache was damaged, not the store: fetch it once more
                for relative in changed:
                    (folder / relative).unlink(missing_ok=True)
                changed = _changed(self._fetch(name, number, manifest), manifest)
            if changed:
                raise ScenariumError("SCN-5002", file=folder / changed[0], name=name, version=number)
        return Version(number, manifest, folder)

    def _fetch(self, name: str, number: int, manifest: Manifest) -> Path:
        folder = self.cache / name / str(number)
        for relative, expected in manifest.files.items():
            path = folder / relative
            if not path.is_file() or path.stat().st_size != expected.size:
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
                try:
                    self.fs.get_file(self.path(name, number, relative), str(part))
                    os.replace(part, path)
                except FileNotFoundError:
                    continue  # named by the hash check that follows
                finally:
                    part.unlink(missing_ok=True)
        return folder

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def set_alias(self, name: str, alias: str, number: int, reason: str, *, action: str = "promote", forced: bool = False) -> None:
        """Point ``alias`` at a version, atomically, add a line to the history, and derive ``models/`` anew.

        Raises:
            ScenariumError: SCN-5001 (no such version), SCN-5008 (the alias is set, but ``models/`` could not be written).
        """
        from scenarium.core import rollouts

        with self.lock(name):
            self.resolve(name, number)
            record = self.aliases(name)
            entry = {"alias": alias, "action": action, "from": record["aliases"].get(alias), "to": number, "at": datetime.now(UTC).isoformat()}
            record["history"].append({**entry, "by": user(), "reason": reason, "forced": forced})
            record["aliases"][alias] = number
            rollouts.settle(self, name, record, alias, number)
            self.save_aliases(name, record)

    def save_aliases(self, name: str, record: dict[str, Any]) -> None:
        """Write what ``aliases`` gave, changed, and derive ``models/`` anew. The caller holds the scenario's lock.

        Raises:
            ScenariumError: SCN-5008 (it is written, but ``models/`` could not be).
        """
        from scenarium.core import triton_repository

        self.write(self.path(name, ALIASES), json.dumps(record, ensure_ascii=False, indent=1).encode())
        triton_repository.derive(self, name)

    @contextmanager
    def draft(self, name: str) -> Iterator[Path]:
        """A scratch folder for a version in the making, on the store's own disk where that is local; removed afterwards.

        Drafts whose process died are removed too: a draft's lock is released by the system when its process ends.
        """
        if not self.local:
            with tempfile.TemporaryDirectory(prefix="scenarium-draft-", ignore_cleanup_errors=True) as scratch:
                yield Path(scratch)
            return
        with self.lock(name):
            self._sweep(name)
            folder = Path(tempfile.mkdtemp(prefix=".draft-", dir=self.path(name)))
            alive = FileLock(f"{folder}.lock", thread_local=False)
            alive.acquire()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            alive.release()
            Path(alive.lock_file).unlink(missing_ok=True)

    def _sweep(self, name: str) -> None:
        for folder in Path(self.path(name)).glob(".draft-*"):
            lock = FileLock(str(folder) if folder.suffix == ".lock" else f"{folder}.lock", thread_local=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            shutil.rmtree(Path(lock.lock_file).with_suffix(""), ignore_errors=True)
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)

    def commit(self, name: str, draft: Path, manifest: Manifest) -> Version:
        """Hash the draft's files, number it and publish it. The draft's folder becomes the version's."""
        paths = sorted(path for path in draft.rglob("*") if path.is_file() and path.name != MANIFEST)
        for path in paths:
            _sync(path)
        manifest.files = {path.relative_to(draft).as_posix(): FileRef(sha256=sha256(path), size=path.stat().st_size) for path in paths}
        with self.lock(name):
            number = manifest.version = self._claim(name)
            text = manifest.model_dump_json(indent=1).encode()
            target = self.path(name, number)
            if self.local:
                self.write(f"{draft.as_posix()}/{MANIFEST}", text)
                draft.chmod(0o755)  # mkdtemp makes folders that the gateway's user could not enter
                _sync(draft)
                os.rename(draft, target)
                _sync(Path(self.path(name)))
            else:
                for relative in manifest.files:
                    self.fs.put_file(str(draft / relative), f"{target}/{relative}")
                self.write(f"{target}/{MANIFEST}", text)
        return self.open(name, number)

    def _claim(self, name: str) -> int:
        """The next free number. On a local disk the scenario's lock is held; an object store creates the marker exclusively."""
        number = max(self._numbers(name), default=0) + 1
        while not self.local:
            try:
                self.fs.pipe_file(self.path(name, number, CLAIM), b"", mode="create")
                break
            except FileExistsError:
                number += 1
        return number

    def delete(self, name: str, numbers: Sequence[int]) -> None:
        """Delete versions. Without its manifest a version is gone, so that goes first."""
        with self.lock(name):
            for number in numbers:
                self.fs.rm_file(self.path(name, number, MANIFEST))
                self.fs.rm(self.path(name, number), recursive=True)
                shutil.rmtree(self.cache / name / str(number), ignore_errors=True)

    def prunable(self, name: str, keep: int) -> list[int]:
        """The versions that no alias names, that are not among the last ``keep``, and to which no rollback would return."""
        record = self.aliases(name)
        held = {*record["aliases"].values(), *(self.previous(name, alias) for alias in record["aliases"])}
        numbers = self.versions(name)
        return [number for number in numbers[: max(0, len(numbers) - max(keep, 1))] if number not in held]

    def write(self, path: str, content: bytes) -> None:
        """Write a small file atomically."""
        if not self.local:
            self.fs.pipe_file(path, content)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


def _changed(folder: Path, manifest: Manifest) -> list[str]:
    """The files of a version that are missing or whose hash differs."""
    for relative in manifest.files:
        if PurePosixPath(relative).is_absolute() or ".." in PurePosixPath(relative).parts:
            return [relative]
    there = [relative for relative in manifest.files if (folder / relative).is_file()]
    try:
        digests = HashMemory().many([folder / relative for relative in there])
    except (OSError, sqlite3.Error):  # no cache folder to remember them in
        digests = [sha256(folder / relative) for relative in there]
    found = dict(zip(there, digests, strict=True))
    return [relative for relative, expected in manifest.files.items() if found.get(relative) != expected.sha256]


def _sync(path: Path) -> None:
    """Bring a file or folder onto the disk, where the system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def user() -> str:
    """Who runs this process, for the history."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
