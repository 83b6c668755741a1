"""The bounded local cache of fetched data: one folder an entry, filled once, the longest unused removed first.

It lies in ``$XDG_CACHE_HOME/scenarium/sources`` (else ``~/.cache/…``) and keeps at most ``SCENARIUM_CACHE_GB`` (20) gigabytes.
Several processes may use it at once: filling an entry and trimming the cache each happen under a file lock.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from scenarium.core.settings import cache_home as cache_home

DAY = 86_400.0


class Cache:
    """Folders by key.

    ``limit`` is in bytes. ``keep_s``: an entry used within so many seconds is never removed, since a running training may read
    it; so the cache can exceed its limit for that long.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None, keep_s: float = DAY) -> None:
        self.folder = folder or cache_home() / "sources"
        self.limit = int(float(os.environ.get("SCENARIUM_CACHE_GB", "20")) * 1e9) if limit is None else limit
        self.keep_s = keep_s

    @property
    def inbox(self) -> Path:
        """Where a user places package files by hand, for a machine that reaches no index."""
        return self.folder / "inbox"

    @property
    def parts(self) -> Path:
        """Where interrupted downloads wait to be continued."""
        return self.folder / "parts"

    def get(self, key: str, fill: Callable[[Path], object]) -> Path:
        """The folder of ``key``; ``fill`` writes into an empty one where there is none yet. What ``fill`` raises leaves no entry."""
        entry = self.folder / "entries" / key
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{key}.lock"):
            if entry.is_dir():
                os.utime(entry)
                return entry
            entry.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=entry.parent))
            try:
                fill(draft)
                # The folder's own time says when it was last used; renaming makes the whole entry appear at once.
                os.replace(draft, entry)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        self.trim()
        return entry

    def drop(self, key: str) -> None:
        """Remove one entry, if it is there."""
        shutil.rmtree(self.folder / "entries" / key, ignore_errors=True)

    def trim(self) -> list[str]:
        """Remove the longest unused entries until the rest fits; the keys that went."""
        removed = []
        with FileLock(self.folder / "locks" / "trim.lock"):
            entries = sorted((e for e in (self.folder / "entries").iterdir() if e.is_dir()), key=lambda e: e.stat().st_mtime)
            sizes = {entry: folder_size(entry) for entry in entries}
            total = sum(sizes.values())
            for entry in entries:
                if total <= self.limit or time.time() - entry.stat().st_mtime < self.keep_s:
                    break
                shutil.rmtree(entry)
                total -= sizes[entry]
                removed.append(entry.name)
        return removed


def folder_size(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
