"""Hashes of files, remembered until a file changes."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from scenarium.core import hashes
from scenarium.core.hashes import HashMemory, tree_sha256


def test_hashes_are_right_remembered_and_forgotten_on_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{n}.bin" for n in range(20)]
    for n, path in enumerate(files):
        path.write_bytes(bytes([n]) * (n * 1000))
        os.utime(path, (1000, 1000))
    read: list[Path] = []
    real = hashes.sha256

    def counted(path: Path) -> str:
        read.append(path)
        return real(path)

    monkeypatch.setattr(hashes, "sha256", counted)
    memory = HashMemory(tmp_path / "memory.sqlite")
    expected = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert memory.many(files) == expected
    assert len(read) == 20
    assert memory.many(files) == expected
    assert len(read) == 20
    # The same size and the same time: the inode of a replaced file tells.
    swapped = tmp_path / "new"
    swapped.write_bytes(b"\xff" * 3000)
    os.utime(swapped, (1000, 1000))
    os.replace(swapped, files[3])
    assert memory.many(files)[3] == hashlib.sha256(b"\xff" * 3000).hexdigest()
    assert len(read) == 21


def test_a_file_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "a"
    memory = HashMemory(tmp_path / "memory.sqlite")
    for content in (b"one", b"two"):
        inode_kept = path.open("wb")
        inode_kept.write(content)
        inode_kept.close()
        assert memory.many([path]) == [hashlib.sha256(content).hexdigest()]


def test_the_hash_of_a_tree_is_that_of_sha256sums_output(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_text(name * 3)
    said = subprocess.run(["sha256sum", "a", "b"], cwd=tmp_path, capture_output=True, check=True).stdout
    entries = [(name, hashlib.sha256(name.encode() * 3).hexdigest()) for name in ("b", "a")]
    assert tree_sha256(entries) == hashlib.sha256(said).hexdigest()
