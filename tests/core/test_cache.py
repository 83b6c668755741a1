"""The bounded cache: one entry filled once, the longest unused removed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scenarium.core.cache import Cache


def fill(size: int) -> Callable[[Path], object]:
    return lambda folder: (folder / "x").write_bytes(b"0" * size)


def test_the_longest_unused_entries_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=250, keep_s=0)
    for age, key in enumerate(("a", "b")):
        os.utime(cache.get(key, fill(100)), (1000 + age, 1000 + age))
    cache.get("a", fill(0))  # used again: now the younger
    cache.get("c", fill(100))
    assert sorted(p.name for p in (tmp_path / "entries").iterdir()) == ["a", "c"]


def test_an_entry_in_use_is_kept_beyond_the_limit(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=50)
    assert cache.get("a", fill(100)).is_dir()
    assert cache.get("b", fill(100)).is_dir()
    assert len(list((tmp_path / "entries").iterdir())) == 2


def test_a_failed_fill_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def broken(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.get("a", broken)
    assert list((tmp_path / "entries").iterdir()) == []
    assert (cache.get("a", fill(3)) / "x").stat().st_size == 3


WORKER = """
import sys, time
from pathlib import Path
from scenarium.core.cache import Cache
folder = Path(sys.argv[1])
def fill(entry):
    with (folder / "filled.txt").open("a") as log:
        log.write("once\\n")
    time.sleep(0.2)
    (entry / "x").write_bytes(b"0" * 1000)
assert (Cache(folder).get("same", fill) / "x").stat().st_size == 1000
"""


def test_several_processes_fill_an_entry_once(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "filled.txt").read_text() == "once\n"
