"""SHA-256 of files, computed by several threads and remembered by (path, size, time, inode).

The memory is one SQLite file in the cache folder; any number of processes may use it.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scenarium.core.cache import cache_home

CHUNK = 1 << 20
SETTLED_S = 2.0
"""A file changed so recently is not remembered: it may change again within one tick of the file system's clock."""


def sha256(path: Path) -> str:
    """SHA-256 of one file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def tree_sha256(files: Iterable[tuple[str, str]]) -> str:
    """The hash of a tree: SHA-256 over the lines ``<sha256>  <path>`` in the order of the paths (what ``sha256sum`` prints)."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


class HashMemory:
    """Hashes files and remembers the result until size, time or inode changes."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_home() / "hashes.sqlite"

    def many(self, paths: Sequence[Path]) -> list[str]:
        """SHA-256 of each path, in order. Reads only the files that are not remembered, several at a time."""
        if not paths:
            return []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        names = [os.path.abspath(path) for path in paths]
        stats = [os.stat(name) for name in names]
        keys = [(s.st_size, s.st_mtime_ns, s.st_ino) for s in stats]
        connection = sqlite3.connect(self.path, timeout=30)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE IF NOT EXISTS hashes (path TEXT PRIMARY KEY, size INT, mtime_ns INT, inode INT, sha256 TEXT) WITHOUT ROWID")
            known = {}
            for start in range(0, len(names), 500):
                some = names[start : start + 500]
                query = f"SELECT path, size, mtime_ns, inode, sha256 FROM hashes WHERE path IN ({','.join('?' * len(some))})"
                known.update({path: (tuple(key), digest) for path, *key, digest in connection.execute(query, some)})
            found = [known[name][1] if name in known and known[name][0] == key else "" for name, key in zip(names, keys, strict=True)]
            unknown = [index for index, digest in enumerate(found) if not digest]
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                for index, digest in zip(unknown, pool.map(lambda index: sha256(Path(names[index])), unknown), strict=True):
                    found[index] = digest
            now = time.time()
            settled = [(names[i], *keys[i], found[i]) for i in unknown if now - stats[i].st_mtime > SETTLED_S]
            with connection:
                connection.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?)", settled)
        finally:
            connection.close()
        return found
