"""Environments: interpreters of their own, made from a plugin's lock file by ``scenarium env create``. Nothing else installs anything.

An environment lives in ``$XDG_DATA_HOME/scenarium/environments/<name>-<hash of the lock>``; the file ``.complete`` in it, written last, says that it is
whole. So another lock gives another folder, and a running worker never sees its packages change.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scenarium.core.errors import ScenariumError, Words
from scenarium.core.progress import Progress
from scenarium.core.types import Environment

COMPLETE = ".complete"
SLICE = 12
"""Packages installed at a time: progress shows between slices, and an interrupted making goes on with the slice it was at."""
FIRST = ("setuptools", "wheel")
"""What old source distributions build with; installed first, so that the lock governs their builds too."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an environment for one Python version stands or will stand."""

    version: str
    lock: Path
    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def complete(self) -> bool:
        """Whether its making came to the end."""
        return (self.folder / COMPLETE).is_file() and self.python.exists()


def root() -> Path:
    """The folder of all environments."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "scenarium" / "environments"


def places(environment: Environment) -> list[Place]:
    """One place for each Python version that has a lock, the preferred first."""
    found = []
    for version in environment.pythons:
        lock = environment.folder / f"lock-{version}.txt"
        if lock.is_file():
            digest = hashlib.sha256(version.encode() + b"\n" + lock.read_bytes()).hexdigest()[:12]
            found.append(Place(version, lock, root() / f"{environment.name}-{digest}"))
    return found


def require(environment: Environment) -> Path:
    """The interpreter of a complete environment.

    Raises:
        ScenariumError: SCN-6004, with the command that makes it.
    """
    for place in places(environment):
        if place.complete:
            return place.python
    raise ScenariumError("SCN-6004", name=environment.name)


def create(environment: Environment, progress: Progress | None = None, *, python: str | None = None) -> Place:
    """Make the environment, or return it at once where it is complete. ``python`` allows that version alone.

    One process makes it at a time; the others wait and find it made.

    Raises:
        ScenariumError: SCN-6005 (no interpreter of an accepted version), SCN-6006 (a step failed; the next call goes on there).
    """
    from filelock import FileLock, Timeout

    progress = progress or Progress()
    accepted = [place for place in places(environment) if python in (None, place.version)]
    for place in accepted:
        if place.complete:
            return place
    for place in accepted:
        if interpreter := find_python(place.version):
            break
    else:
        wanted = [python] if python else list(environment.pythons)
        raise ScenariumError("SCN-6005", name=environment.name, pythons=" / ".join(wanted), first=wanted[0])
    root().mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{place.folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.note(f"waiting for the process that is making {place.folder}")
        lock.acquire()
    try:
        if not place.complete:
            _make(environment, place, interpreter, progress)
    finally:
        lock.release()
    return place


def find_python(version: str) -> Path | None:
    """An interpreter of ``version`` (``"3.10"``): this one, on PATH, of pyenv, of uv. Each candidate is asked, for a shim on PATH may refuse to run."""
    for candidate in _candidates(version):
        probe = [str(candidate), "-I", "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        try:
            answer = subprocess.run(probe, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if answer.returncode == 0 and answer.stdout.strip() == version:
            return candidate
    return None


def _candidates(version: str) -> Iterator[Path]:
    if f"{sys.version_info.major}.{sys.version_info.minor}" == version:
        yield Path(sys.executable)
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if found := shutil.which(f"python{version}", path=folder):
            yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    yield from sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)
    uv = os.environ.get("UV_PYTHON_INSTALL_DIR")
    base = Path(uv) if uv else Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "uv" / "python"
    yield from sorted(base.glob(f"*-{version}.*/bin/python{version}"), reverse=True)


def packages(lock: Path) -> list[str]:
    """The requirements of a lock file, build tools first."""
    lines = [line.partition("#")[0].strip() for line in lock.read_text(encoding="utf8").splitlines()]
    return sorted(filter(None, lines), key=lambda line: line.partition("==")[0] not in FIRST)


def _make(environment: Environment, place: Place, interpreter: Path, progress: Progress) -> None:
    wanted = packages(place.lock)
    uv = shutil.which("uv", path=os.pathsep.join([os.environ.get("PATH", ""), os.path.dirname(sys.executable)]))
    progress.note(f"making {place.folder} with Python {place.version} ({interpreter}) and {'uv' if uv else 'pip'}")
    if not place.python.exists():
        shutil.rmtree(place.folder, ignore_errors=True)
        venv: list[str | Path] = [uv, "venv", "-q", "--python", interpreter] if uv else [interpreter, "-m", "venv", "--without-pip"]
        _run(environment, [*venv, place.folder], "venv")
    installer = _installer(environment, place, uv) if wanted else []
    done_file = place.folder / ".installed"
    done = int(done_file.read_text()) if done_file.is_file() else 0
    # A slice that was interrupted may have left half a package behind that looks installed.
    again = ["--reinstall" if uv else "--force-reinstall"] if done_file.is_file() else []
    done_file.write_text(str(done))
    progress.start(f"installing {len(wanted)} packages", len(wanted))
    progress.advance(done)
    while done < len(wanted):
        # The build tools go in alone: what follows may be built with them.
        size = sum(line.partition("==")[0] in FIRST for line in wanted) if done == 0 else 0
        part = wanted[done : done + (size or SLICE)]
        _run(environment, [*installer, *again, *part], ", ".join(part))
        again = []
        done += len(part)
        done_file.write_text(str(done))
        progress.advance(len(part))
    progress.finish()
    _verify(environment, place, wanted)
    (place.folder / COMPLETE).write_text(json.dumps({"python": place.version, "interpreter": str(interpreter), "packages": len(wanted)}), encoding="utf8")


def _installer(environment: Environment, place: Place, uv: str | None) -> list[str | Path]:
    """The command that installs into the environment: uv, else this interpreter's pip, else (where that is too new for it) a pip of its own."""
    options = ["-q", "--no-deps", "--no-build-isolation"]
    if uv:
        return [uv, "pip", "install", "--python", place.python, *options, *_pip_index()]
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", place.python]
    if subprocess.run([*pip, "--version"], capture_output=True).returncode:
        _run(environment, [place.python, "-m", "ensurepip"], "ensurepip")
        pip = [place.python, "-m", "pip"]
    return [*pip, "install", "--no-input", "--disable-pip-version-check", *options]


def _verify(environment: Environment, place: Place, wanted: Sequence[str]) -> None:
    """Compare what is installed with the lock."""
    code = "import importlib.metadata as m, json; print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}))"
    installed = {_plain(name): version for name, version in json.loads(_run(environment, [place.python, "-I", "-c", code], "verify")).items()}
    missing = [line for line in wanted if "==" in line and installed.get(_plain(line.partition("==")[0])) != line.partition("==")[2].partition(";")[0].strip()]
    if missing:
        place.python.unlink()  # The next call begins anew.
        raise ScenariumError(
            "SCN-6006",
            name=environment.name,
            step="verify",
            reason=Words(f"not as the lock says: {', '.join(missing)}", f"与锁定文件不符：{', '.join(missing)}"),
        )


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _run(environment: Environment, command: Sequence[str | Path], step: str) -> str:
    """Run one step without the Python settings of this process; its output is shown if it fails."""
    environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environ, stdin=subprocess.DEVNULL)
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-12:])
        raise ScenariumError("SCN-6006", name=environment.name, step=step, reason=tail or f"exit code {done.returncode}")
    return done.stdout


def _pip_index() -> list[str]:
    """The package indexes of pip's configuration as options for uv, which reads only its own: the user's mirror must hold for both."""
    if any(name in os.environ for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_EXTRA_INDEX_URL")):
        return []
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    settings = dict(re.findall(r"^(?:global|install|:env:)\.(index-url|extra-index-url|find-links)='(.*)'$", listed, re.MULTILINE))
    words = [word for key, values in settings.items() for value in values.replace("\\n", " ").split() for word in (f"--{key}", value)]
    # Several indexes mean to pip that the best match of all is taken; to uv that the first which knows the name decides.
    return [*words, "--index-strategy", "unsafe-best-match"] if "extra-index-url" in settings else words
