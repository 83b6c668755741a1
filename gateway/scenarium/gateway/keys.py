"""API keys: made once, kept as hashes in one SQLite file, looked up in a dict.

A key is ``sk-scn-<id>-<secret>``. The id is public: lists, logs and the audit log name it. The secret is 256 random bits, of which the
file holds the SHA-256 alone. A slow, salted hash (argon2, bcrypt) protects passwords, because people choose guessable ones; nobody
guesses 256 random bits, whatever a guess costs, so a fast hash is as safe and takes under a microsecond of each request.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scenarium.core.errors import ScenariumError, Words

PREFIX = "sk-scn-"
FORMAT = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, digest BLOB NOT NULL, scenarios TEXT NOT NULL, admin INTEGER NOT NULL, created REAL NOT NULL, expires REAL, revoked REAL,
    rate_limit INTEGER, rate_window INTEGER, daily INTEGER, note TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS usage (id TEXT NOT NULL, day TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (id, day));
"""
_COLUMNS = "id, digest, scenarios, admin, created, expires, revoked, rate_limit, rate_window, daily, note"
_NAMES = {1: "second", 60: "minute", 3600: "hour", 86400: "day"}
_NOBODY = hashlib.sha256(b"").digest()


@dataclass(frozen=True, slots=True)
class Rate:
    """At most ``limit`` requests in ``window`` seconds."""

    limit: int
    window: int

    def __str__(self) -> str:
        return f"{self.limit}/{_NAMES.get(self.window, f'{self.window}s')}"


@dataclass(frozen=True, slots=True)
class Key:
    """One API key as the file holds it. Times are seconds since 1970."""

    id: str
    digest: bytes
    """SHA-256 of the secret."""
    scenarios: frozenset[str] | None
    """What it may predict; None: every scenario."""
    admin: bool
    created: float
    expires: float | None = None
    revoked: float | None = None
    rate: Rate | None = None
    daily: int | None = None
    """Requests a day (UTC)."""
    note: str = ""

    @property
    def state(self) -> str:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= time.time() else "active"

    @property
    def limited(self) -> bool:
        """Whether its requests are counted."""
        return self.rate is not None or self.daily is not None

    def may_predict(self, scenario: str) -> bool:
        """Whether it holds for this scenario."""
        return self.scenarios is None or scenario in self.scenarios


class KeyFile:
    """The file. Every change is one short transaction, so a command and several gateways may use it at once.

    A method raises ``ScenariumError`` SCN-1102 where the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(
        self,
        *,
        scenarios: frozenset[str] | None = None,
        admin: bool = False,
        expires: float | None = None,
        rate: Rate | None = None,
        daily: int | None = None,
        note: str = "",
    ) -> tuple[Key, str]:
        """A new key, and its text, which nothing can show again."""
        secret = secrets.token_hex(32)
        key = Key(secrets.token_hex(4), _digest(secret), scenarios, admin, time.time(), expires, None, rate, daily, note)
        scope = json.dumps(None if scenarios is None else sorted(scenarios))
        with self._change() as connection:
            values = (key.id, key.digest, scope, admin, key.created, expires, None, rate and rate.limit, rate and rate.window, daily, note)
            connection.execute(f"INSERT INTO keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        return key, f"{PREFIX}{key.id}-{secret}"

    def revoke(self, ident: str) -> None:
        """End a key. Its row stays, for the audit log's sake; ending it twice changes nothing.

        Raises:
            ScenariumError: SCN-1104 (no such key).
        """
        with self._change() as connection:
            done = connection.execute("UPDATE keys SET revoked = COALESCE(revoked, ?) WHERE id = ?", (time.time(), ident))
            if not done.rowcount:
                raise ScenariumError("SCN-1104", ident=ident)

    def read(self) -> list[Key]:
        """All keys, oldest first; none where there is no file."""
        if not self.path.exists():
            return []
        with self._read() as connection:
            return [_key(row) for row in connection.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created")]

    def stamp(self) -> tuple[int, int] | None:
        """Something that changes with every change of the keys: the file's number and its count of changes; None: no file."""
        try:
            number = self.path.stat().st_ino
        except FileNotFoundError:
            return None
        except OSError as fault:
            raise self._unusable(fault) from None
        with self._read() as connection:
            return number, connection.execute("PRAGMA user_version").fetchone()[0] >> 8

    def usage(self, day: str) -> dict[str, int]:
        """Requests of each key on a day (``2026-11-24``)."""
        if not self.path.exists():
            return {}
        with self._read() as connection:
            return dict(connection.execute("SELECT id, count FROM usage WHERE day = ?", (day,)))

    def add_usage(self, day: str, counts: Mapping[str, int]) -> dict[str, int]:
        """Add requests of this day; returns the day's counts with those of other gateways. Older days are forgotten."""
        with self._connect("rw") as connection, self._transaction(connection):
            connection.execute("DELETE FROM usage WHERE day < ?", (day,))
            add = "INSERT INTO usage VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count"
            connection.executemany(add, [(ident, day, count) for ident, count in counts.items()])
            return dict(connection.execute("SELECT id, count FROM usage WHERE day = ?", (day,)))

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which the stamp shows."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))  # SQLite gives -wal and -shm the file's mode
        except OSError as fault:
            raise self._unusable(fault) from None
        with self._connect("rw") as connection:
            with self._guard():
                connection.execute("PRAGMA journal_mode = WAL")
            with self._transaction(connection):
                for statement in _TABLES.split(";"):
                    connection.execute(statement)
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                yield connection
                connection.execute(f"PRAGMA user_version = {((version >> 8) + 1) % (1 << 22) << 8 | FORMAT}")

    @contextlib.contextmanager
    def _transaction(self, connection: sqlite3.Connection) -> Iterator[None]:
        with self._guard():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextlib.contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        # A file in WAL mode is opened with files beside it; in a folder where none may be made (a mounted secret) there are no writers.
        mode = "ro" if os.access(self.path.parent, os.W_OK) else "ro&immutable=1"
        with self._connect(mode) as connection, self._guard():
            yield connection

    @contextlib.contextmanager
    def _connect(self, mode: str) -> Iterator[sqlite3.Connection]:
        with self._guard():
            connection = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode={mode}", uri=True, timeout=5, isolation_level=None)
        try:
            with self._guard():
                version = connection.execute("PRAGMA user_version").fetchone()[0] & 0xFF
                if version > FORMAT:
                    raise ScenariumError(
                        "SCN-1102", file=self.path, reason=Words(f"format {version} is of a later Scenarium", f"格式 {version} 来自更新的 Scenarium")
                    )
            yield connection
        finally:
            connection.close()

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as fault:
            raise self._unusable(fault) from fault

    def _unusable(self, fault: Exception) -> ScenariumError:
        return ScenariumError("SCN-1102", file=self.path, reason=getattr(fault, "strerror", None) or str(fault))


class Keyring:
    """The keys of a running gateway, in memory."""

    def __init__(self, file: KeyFile | None) -> None:
        self.file = file
        self.keys: dict[str, Key] = {}
        self.asked = False
        """Whether a key is needed. It stays so once a key was seen: neither the last revocation nor the loss of the file opens a gateway."""
        self._stamp: tuple[int, int] | None = None

    def refresh(self) -> bool:
        """Read the file where it changed; returns whether it did.

        Raises:
            ScenariumError: SCN-1102. The keys stay as they were.
        """
        if self.file is None:
            return False
        stamp = self.file.stamp()
        if stamp == self._stamp:
            return False
        found = self.file.read() if stamp and stamp[1] else []  # a file that is being made has no tables yet
        self.keys = {key.id: key for key in found if key.revoked is None}
        self.asked = self.asked or bool(found)
        self._stamp = stamp
        return True

    def find(self, token: str) -> Key | None:
        """The valid key whose text this is; takes a few microseconds, and as long for a wrong secret as for an unknown id."""
        ident, _, secret = token.removeprefix(PREFIX).partition("-")
        key = self.keys.get(ident)
        same = hmac.compare_digest(_digest(secret), key.digest if key else _NOBODY)
        if not same or key is None or not token.startswith(PREFIX) or (key.expires is not None and key.expires <= time.time()):
            return None
        return key


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _key(row: tuple[object, ...]) -> Key:
    ident, digest, scenarios, admin, created, expires, revoked, limit, window, daily, note = row
    scope = json.loads(str(scenarios))
    rate = Rate(limit, window) if isinstance(limit, int) and isinstance(window, int) else None
    named = None if scope is None else frozenset(scope)
    return Key(ident, digest, named, bool(admin), created, expires, revoked, rate, daily, note)  # type: ignore[arg-type]  # the table's own types


UNITS = {"s": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400}


def parse_rate(text: str) -> Rate:
    """``100/minute``, ``5/s``, ``20/10s``.

    Raises:
        ScenariumError: SCN-1103.
    """
    found = re.fullmatch(r"([1-9]\d{0,8})\s*/\s*([1-9]\d{0,5})?\s*([a-z]+?)s?", text.strip().lower())
    if found is None or found[3] not in UNITS:
        raise ScenariumError("SCN-1103", field="--rate", value=text, wanted_en="a rate such as 100/minute", wanted_zh="形如 100/minute 的速率")
    return Rate(int(found[1]), int(found[2] or 1) * UNITS[found[3]])


def parse_expiry(text: str, now: float) -> float:
    """``30d``, ``12h`` from now, or a date (``2027-01-31``, the end of that day UTC).

    Raises:
        ScenariumError: SCN-1103.
    """
    from datetime import UTC, datetime, timedelta

    if found := re.fullmatch(r"([1-9]\d{0,4})\s*([a-z]+?)s?", text.strip().lower()):
        if found[2] in UNITS:
            return now + int(found[1]) * UNITS[found[2]]
    else:
        with contextlib.suppress(ValueError):
            end = (datetime.strptime(text.strip(), "%Y-%m-%d").replace(tzinfo=UTC) + timedelta(days=1)).timestamp()
            if end > now:
                return end
    raise ScenariumError(
        "SCN-1103", field="--expires", value=text, wanted_en="a time to come, such as 30d or 2030-01-31", wanted_zh="将来的时间，例如 30d 或 2030-01-31"
    )
