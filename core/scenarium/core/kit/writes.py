"""Which files a piece of code writes, by Python's audit events (PEP 578)."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

SCRATCH = (tempfile.gettempprefix(), "torchinductor_")
"""How names in the temporary folder begin that are no fault: those that ``tempfile`` makes, and the cache of torch's compiler."""

MOVES = ("os.rename", "os.link", "os.symlink")
CHANGES = ("os.mkdir", "os.remove", "os.rmdir")

watched: list[tuple[list[Path], list[Path]]] = []
"""Allowed folders and findings of the blocks that are under watch now."""


@contextmanager
def watch_writes(*allowed: Path) -> Iterator[list[Path]]:
    """Collect the files opened for writing, made, renamed or removed outside ``allowed``, caches and temporary files.

    Sees Python's own calls; what a C library opens by itself goes unseen.
    """
    tempfile.gettempdir()  # settled by a first call, under a lock that the hook would wait for
    _install()
    home = Path.home()
    caches = [Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache"), *(Path(os.environ[name]) for name in ("HF_HOME", "TORCH_HOME") if name in os.environ)]
    places = [place.resolve() for place in (*allowed, *caches, home / ".config" / "matplotlib", Path("/dev"), Path("/proc"))]
    entry: tuple[list[Path], list[Path]] = (places, [])
    watched.append(entry)
    try:
        yield entry[1]
    finally:
        watched.remove(entry)


@cache
def _install() -> None:
    # An audit hook cannot be taken away again, so there is one, and it does nothing outside of ``watch_writes``.
    sys.addaudithook(_audit)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not watched or event not in ("open", *MOVES, *CHANGES):
        return
    path = arguments[1] if event in MOVES else arguments[0]
    if event == "open" and not _writes(*arguments[1:3]):
        return
    if isinstance(path, (str, bytes, os.PathLike)):
        found = Path(os.path.abspath(os.fsdecode(path)))
        for places, findings in watched:
            if not _harmless(found, places):
                findings.append(found)


def _writes(mode: object, flags: object) -> bool:
    if isinstance(mode, str) and any(letter in mode for letter in "wax+"):
        return True
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def _harmless(path: Path, places: list[Path]) -> bool:
    scratch = Path(tempfile.gettempdir()).resolve()
    if path == scratch:  # as which a file without a name is opened
        return True
    if path.parent.is_relative_to(scratch) and path.relative_to(scratch).parts[0].startswith(SCRATCH):
        return True
    return "__pycache__" in path.parts or any(path.is_relative_to(place) for place in places)
