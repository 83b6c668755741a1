"""Where versions live: ``scenarios/<name>/<n>/`` under any fsspec URL, with ``manifest.json`` written last as the commit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from scenarium.core.errors import ScenariumError
from scenarium.core.manifest import FileRef, Manifest

MANIFEST = "manifest.json"
ALIASES = "aliases.json"
PRODUCTION = "production"


@dataclass(frozen=True, slots=True)
class Version:
    """A committed version: its number, manifest, and a local folder with its files."""

    number: int
    manifest: Manifest
    folder: Path


class Store:
    """The versions and aliases of all scenarios under one URL."""

    def __init__(self, url: str, cache: Path | None = None) -> None:
        self.fs, root = fsspec.core.url_to_fs(url)
        self.root = root.rstrip("/")
        self.local = isinstance(self.fs, LocalFileSystem)
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.cache = cache or Path(base) / "scenarium" / "versions" / hashlib.sha256(url.encode()).hexdigest()[:16]

    def path(self, *parts: object) -> str:
        """The full path of something in the store."""
        return "/".join([self.root, "scenarios", *map(str, parts)])

    def versions(self, name: str) -> list[int]:
        """Numbers of the committed versions of a scenario, ascending."""
        try:
            entries = self.fs.ls(self.path(name), detail=False, refresh=True) if not self.local else self.fs.ls(self.path(name), detail=False)
        except FileNotFoundError:
            return []
        numbers = [int(leaf) for leaf in (entry.rstrip("/").rpartition("/")[2] for entry in entries) if leaf.isdigit()]
        return sorted(n for n in numbers if self.fs.exists(self.path(name, n, MANIFEST)))

    def scenarios(self) -> list[str]:
        """Names of the scenarios that have a folder."""
        try:
            return sorted(entry.rstrip("/").rpartition("/")[2] for entry in self.fs.ls(self.path(), detail=False))
        except FileNotFoundError:
            return []

    def manifest(self, name: str, number: int) -> Manifest:
        """The manifest of one version.

        Raises:
            ScenariumError: SCN-5001 (no such version).
        """
        try:
            return Manifest.model_validate_json(self.fs.cat_file(self.path(name, number, MANIFEST)))
        except FileNotFoundError:
            known = ", ".join(map(str, self.versions(name))) or "-"
            raise ScenariumError("SCN-5001", name=name, version=number, known=known) from None

    def aliases(self, name: str) -> dict[str, Any]:
        """Alias to version number, and ``history``: who set what, when and why, the oldest first."""
        try:
            found: dict[str, Any] = json.loads(self.fs.cat_file(self.path(name, ALIASES)))
        except FileNotFoundError:
            found = {"aliases": {}, "history": []}
        return found

    def set_alias(self, name: str, alias: str, number: int, reason: str) -> None:
        """Point ``alias`` at a version, atomically, and add a line to the history."""
        from datetime import UTC, datetime
        from getpass import getuser

        record = self.aliases(name)
        record["history"].append(
            {"alias": alias, "from": record["aliases"].get(alias), "to": number, "at": datetime.now(UTC).isoformat(), "by": getuser(), "reason": reason}
        )
        record["aliases"][alias] = number
        self._write(self.path(name, ALIASES), json.dumps(record, ensure_ascii=False, indent=1).encode())

    def resolve(self, name: str, ref: str | int = PRODUCTION) -> int:
        """The number behind an alias or a number given as text.

        Raises:
            ScenariumError: SCN-4004 (nothing trained yet), SCN-5001 (no such version or alias).
        """
        numbers = self.versions(name)
        number = int(ref) if str(ref).isdigit() else self.aliases(name)["aliases"].get(ref)
        if number in numbers:
            return int(number)
        if not numbers or (ref == PRODUCTION and number is None):
            raise ScenariumError("SCN-4004", name=name)
        raise ScenariumError("SCN-5001", name=name, version=ref, known=", ".join(map(str, numbers)))

    def open(self, name: str, ref: str | int = PRODUCTION) -> Version:
        """A version with a local folder whose files match their hashes.

        Raises:
            ScenariumError: SCN-4004, SCN-5001, SCN-5002 (a file is missing or was changed).
        """
        number = self.resolve(name, ref)
        manifest = self.manifest(name, number)
        folder = Path(self.path(name, number)) if self.local else self._fetch(name, number, manifest)
        for relative, expected in manifest.files.items():
            if not (folder / relative).is_file() or sha256(folder / relative) != expected.sha256:
                raise ScenariumError("SCN-5002", file=folder / relative, name=name, version=number)
        return Version(number, manifest, folder)

    @contextmanager
    def draft(self, name: str) -> Iterator[Path]:
        """A scratch folder for a version in the making, on the store's own disk where that is local; removed afterwards."""
        if self.local:
            parent = Path(self.path(name))
            parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".draft-", dir=parent))
        else:
            folder = Path(tempfile.mkdtemp(prefix="scenarium-draft-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, name: str, draft: Path, manifest: Manifest) -> Version:
        """Number the draft, hash its files and publish it; the manifest is written last."""
        manifest.files = {
            str(path.relative_to(draft)): FileRef(sha256=sha256(path), size=path.stat().st_size) for path in sorted(draft.rglob("*")) if path.is_file()
        }
        number = self._claim(name)
        manifest.version = number
        target = self.path(name, number)
        for relative in manifest.files:
            if self.local:
                destination = Path(target) / relative
                destination.parent.mkdir(parents=True, exist_ok=True)
                os.replace(draft / relative, destination)
            else:
                self.fs.put_file(str(draft / relative), f"{target}/{relative}")
        self._write(f"{target}/{MANIFEST}", manifest.model_dump_json(indent=1).encode())
        return self.open(name, number)

    def _claim(self, name: str) -> int:
        """Take the next free number. On a local disk the folder's creation is the lock."""
        try:
            taken = [int(leaf) for leaf in (e.rstrip("/").rpartition("/")[2] for e in self.fs.ls(self.path(name), detail=False)) if leaf.isdigit()]
        except FileNotFoundError:
            taken = []
        number = max(taken, default=0) + 1
        while self.local:
            try:
                Path(self.path(name, number)).mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
        return number

    def _fetch(self, name: str, number: int, manifest: Manifest) -> Path:
        folder = self.cache / name / str(number)
        for relative, expected in manifest.files.items():
            path = folder / relative
            if not path.is_file() or path.stat().st_size != expected.size:
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
                self.fs.get_file(self.path(name, number, relative), str(part))
                os.replace(part, path)
        return folder

    def _write(self, path: str, content: bytes) -> None:
        if not self.local:
            self.fs.pipe_file(path, content)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
