"""Which files a piece of code writes, by Python's audit events (PEP 578)."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_watched: list[tuple[list[Path], list[Path]]] = []
_state = {"installed": False}


@contextmanager
def watch_writes(*allowed: Path) -> Iterator[list[Path]]:
    """Collect the files opened for writing, made, renamed or removed outside ``allowed``, caches and the temporary folder.

    Sees Python's own calls; what a C library opens by itself goes unseen.
    """
    if not _state["installed"]:
        sys.addaudithook(_hook)
        _state["installed"] = True
    home = Path.home()
    caches = [Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache"), *(Path(os.environ[n]) for n in ("HF_HOME", "TORCH_HOME") if n in os.environ)]
    places = [p.resolve() for p in (*allowed, *caches, home / ".config" / "matplotlib", Path("/dev"), Path("/proc"))]
    entry: tuple[list[Path], list[Path]] = (places, [])
    _watched.append(entry)
    try:
        yield entry[1]
    finally:
        _watched.remove(entry)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = (isinstance(mode, str) and any(letter in mode for letter in "wax+")) or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR))
        if not writes:
            return
    elif event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink"):
        path = arguments[1] if event in ("os.rename", "os.link", "os.symlink") else arguments[0]
    else:
        return
    if not isinstance(path, (str, bytes, os.PathLike)):
        return
    found = Path(os.path.abspath(os.fsdecode(path)))
    scratch = Path(tempfile.gettempdir()).resolve()
    for places, written in _watched:
        inside = any(found.is_relative_to(place) for place in places) or "__pycache__" in found.parts
        # A name that tempfile made is scratch; a fixed name in the temporary folder is shared between runs.
        if not inside and not (
            found.is_relative_to(scratch) and found.relative_to(scratch).parts[:1] and found.relative_to(scratch).parts[0].startswith("tmp")
        ):
            written.append(found)
