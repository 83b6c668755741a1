"""The jobs of one gateway in one SQLite file: what was asked, how far it is, how it ended.

Every method is one short transaction on one connection, which one thread alone uses; a lock beside the file keeps other gateways out
for as long as this one lives, however it ends. A method raises ``ScenariumError`` SCN-4127 where the file cannot be used.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from scenarium.core.errors import ScenariumError, Words

Mode = Literal["one", "batch", "stream"]
State = Literal["queued", "running", "done", "failed", "cancelled"]
STATES: tuple[State, ...] = ("queued", "running", "done", "failed", "cancelled")

FORMAT = 1
MOST_RUNS = 3
"""A job that runs when its gateway dies is begun anew so often; then it is taken for the cause."""
_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, scenario TEXT NOT NULL, owner TEXT NOT NULL, mode TEXT NOT NULL, state TEXT NOT NULL,
    created REAL NOT NULL, started REAL, ended REAL, once TEXT, digest BLOB NOT NULL, content_type TEXT NOT NULL, language TEXT NOT NULL,
    routing TEXT NOT NULL, trace TEXT NOT NULL, deadline_ms REAL NOT NULL, runs INTEGER NOT NULL DEFAULT 0, pure INTEGER, done INTEGER NOT NULL DEFAULT 0,
    total INTEGER, errors INTEGER NOT NULL DEFAULT 0, version INTEGER, media TEXT, fault TEXT, body BLOB, result BLOB);
CREATE UNIQUE INDEX IF NOT EXISTS jobs_once ON jobs (owner, scenario, once) WHERE once IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_state ON jobs (state);
CREATE INDEX IF NOT EXISTS jobs_ended ON jobs (ended)
"""
_COLUMNS = "number, id, scenario, owner, mode, state, created, started, ended, content_type, language, routing, trace, deadline_ms, runs, done, total, errors, "
_COLUMNS += "version, media, fault"


@dataclass(frozen=True, slots=True)
class New:
    """What a client asks for."""

    scenario: str
    owner: str
    """Id of the API key; empty where no key was asked for."""
    mode: Mode
    content_type: str
    language: str
    routing: str
    """Routing key, see ``X-Scenarium-Key``."""
    trace: str
    deadline_ms: float
    total: int | None
    """Elements of a batch."""
    once: str | None
    """The client's ``Idempotency-Key``."""
    digest: bytes
    """SHA-256 of all that two requests with one ``Idempotency-Key`` must share."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Job:
    """One job as the file holds it. Times are seconds since 1970."""

    number: int
    id: str
    scenario: str
    owner: str
    mode: Mode
    state: State
    created: float
    started: float | None
    ended: float | None
    content_type: str
    language: str
    routing: str
    trace: str
    deadline_ms: float
    runs: int
    done: int
    total: int | None
    errors: int
    version: int | None
    media: str | None
    fault: str | None
    """Problem details by language, JSON."""


@dataclass(frozen=True, slots=True)
class End:
    """How a job ended: with a result, or with ``fault``."""

    media: str = ""
    result: bytes = b""
    version: int = 0
    done: int = 0
    errors: int = 0
    fault: str | None = None


def fault_text(error: ScenariumError) -> str:
    """An error in both languages, for whoever asks later."""
    return json.dumps({lang: error.problem(lang) for lang in ("en", "zh")}, ensure_ascii=False)


class JobFile:
    """The file, opened by ``open``. What ended more than ``keep`` seconds ago has no result any more, and after as long again is forgotten."""

    def __init__(self, path: Path, keep: float, most: int) -> None:
        self.path = path
        self.keep = keep
        self.most = most
        """Jobs that may be queued or running."""
        self._lock = FileLock(f"{path}.lock")
        self._connection: sqlite3.Connection | None = None

    def open(self) -> list[tuple[str, str]]:
        """Take the file; what ran when its gateway died is queued again, or has failed. Returns (id, scenario) of all queued jobs, oldest first."""
        if self._connection is None:
            self._open()
        with self._change() as connection:
            for ident, scenario, pure, runs in connection.execute("SELECT id, scenario, pure, runs FROM jobs WHERE state = 'running'").fetchall():
                if pure and runs < MOST_RUNS:
                    connection.execute("UPDATE jobs SET state = 'queued', started = NULL WHERE id = ?", (ident,))
                else:
                    self._end(connection, ident, End(fault=fault_text(ScenariumError("SCN-4125", name=scenario))))
            return connection.execute("SELECT id, scenario FROM jobs WHERE state = 'queued' ORDER BY number").fetchall()

    def close(self) -> None:
        """Let the file go."""
        if self._connection:
            self._connection.close()
            self._connection = None
        self._lock.release(force=True)

    def add(self, new: New) -> tuple[Job, bool]:
        """Queue a job. False: it is there already, by its ``Idempotency-Key``.

        Raises:
            ScenariumError: SCN-4124 (too many), SCN-4128 (the key came with another request).
        """
        now = time.time()
        with self._change() as connection:
            connection.execute("DELETE FROM jobs WHERE ended < ?", (now - 2 * self.keep,))
            if new.once is not None:
                same = "SELECT id, digest FROM jobs WHERE owner = ? AND scenario = ? AND once = ?"
                if found := connection.execute(same, (new.owner, new.scenario, new.once)).fetchone():
                    if found[1] != new.digest:
                        raise ScenariumError("SCN-4128", value=new.once)
                    return self._job(connection, found[0]), False
            (waiting,) = connection.execute("SELECT COUNT(*) FROM jobs WHERE state IN ('queued', 'running')").fetchone()
            if waiting >= self.most:
                raise ScenariumError("SCN-4124", waiting=waiting)
            ident = secrets.token_hex(16)
            values = {name: getattr(new, name) for name in New.__slots__}
            names = ", ".join(values)
            marks = ", ".join("?" * len(values))
            connection.execute(f"INSERT INTO jobs (id, state, created, {names}) VALUES (?, 'queued', ?, {marks})", (ident, now, *values.values()))
            return self._job(connection, ident), True

    def begin(self, ident: str, pure: bool) -> tuple[Job, bytes] | None:
        """Note that a queued job will be run, before it is; the job and its body, or None where it is not queued any more."""
        with self._change() as connection:
            begun = "UPDATE jobs SET state = 'running', started = ?, runs = runs + 1, pure = ? WHERE id = ? AND state = 'queued'"
            if not connection.execute(begun, (time.time(), pure, ident)).rowcount:
                return None
            (body,) = connection.execute("SELECT body FROM jobs WHERE id = ?", (ident,)).fetchone()
            return self._job(connection, ident), body

    def again(self, ident: str, sent: bool) -> bool:
        """Queue a running job again. ``sent``: a worker had some of it, so that this run counts."""
        with self._change() as connection:
            back = "UPDATE jobs SET state = 'queued', started = NULL, runs = runs - ? WHERE id = ? AND state = 'running'"
            return connection.execute(back, (not sent, ident)).rowcount > 0

    def end(self, ident: str, end: End) -> bool:
        """Keep the result of a running job. False: it has ended already."""
        with self._change() as connection:
            return self._end(connection, ident, end)

    def cancel(self, ident: str) -> Job:
        """End a queued or running job without a result; one that has ended stays as it is."""
        with self._change() as connection:
            cancelled = "UPDATE jobs SET state = 'cancelled', ended = ?, body = NULL WHERE id = ? AND state IN ('queued', 'running')"
            connection.execute(cancelled, (time.time(), ident))
            return self._job(connection, ident)

    def get(self, ident: str) -> Job | None:
        """One job, or None where there is none or it is forgotten."""
        with self._use() as connection:
            row = connection.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (ident,)).fetchone()
        job = Job(*row) if row else None
        return None if job is None or (job.ended and job.ended < time.time() - 2 * self.keep) else job

    def result(self, ident: str) -> bytes | None:
        """The result; None where there is none any more."""
        with self._use() as connection:
            row = connection.execute("SELECT result FROM jobs WHERE id = ? AND ended >= ?", (ident, time.time() - self.keep)).fetchone()
        return row[0] if row else None

    def page(self, owner: str | None, scenario: str | None, state: str | None, below: int | None, limit: int) -> list[Job]:
        """Up to ``limit`` jobs, newest first, of those with a smaller number than ``below``. ``owner`` None: everybody's."""
        wanted: dict[str, Any] = {
            "owner = ?": owner,
            "scenario = ?": scenario,
            "state = ?": state,
            "number < ?": below,
            "(ended IS NULL OR ended >= ?)": time.time() - 2 * self.keep,
        }
        given = {text: value for text, value in wanted.items() if value is not None}
        query = f"SELECT {_COLUMNS} FROM jobs WHERE {' AND '.join(given)} ORDER BY number DESC LIMIT ?"
        with self._use() as connection:
            return [Job(*row) for row in connection.execute(query, (*given.values(), limit))]

    def sweep(self) -> list[tuple[str, str]]:
        """Drop old results and forgotten jobs; a job that nobody could begin for so long fails. Returns (id, scenario) of those."""
        now = time.time()
        with self._change() as connection:
            connection.execute("DELETE FROM jobs WHERE ended < ?", (now - 2 * self.keep,))
            connection.execute("UPDATE jobs SET result = NULL WHERE ended < ? AND result IS NOT NULL", (now - self.keep,))
            late = connection.execute("SELECT id, scenario FROM jobs WHERE state = 'queued' AND created < ?", (now - self.keep,)).fetchall()
            for ident, scenario in late:
                self._end(connection, ident, End(fault=fault_text(ScenariumError("SCN-4130", name=scenario, seconds=round(self.keep)))), "queued")
        with self._use() as connection:
            connection.execute("PRAGMA incremental_vacuum(1000)").fetchall()  # pages of 4 KiB, given back to the file system
        return late

    def _end(self, connection: sqlite3.Connection, ident: str, end: End, state: str = "running") -> bool:
        values = ("failed" if end.fault else "done", time.time(), end.media, end.result, end.version or None, end.done, end.errors, end.fault, ident, state)
        ended = "UPDATE jobs SET state = ?, ended = ?, media = ?, result = ?, version = ?, done = ?, errors = ?, fault = ?, body = NULL "
        return connection.execute(f"{ended} WHERE id = ? AND state = ?", values).rowcount > 0

    def _job(self, connection: sqlite3.Connection, ident: str) -> Job:
        return Job(*connection.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (ident,)).fetchone())

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except Timeout:
            raise ScenariumError("SCN-4127", reason=Words("another gateway has it open", "另一个网关正在使用它"), file=self.path) from None
        except OSError as fault:
            raise self._unusable(fault) from None
        try:
            with self._guard():
                os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))  # requests stand in it; SQLite gives -wal and -shm the file's mode
                self._connection = sqlite3.connect(self.path, timeout=1, isolation_level=None)
            with self._use() as connection:
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version > FORMAT:
                    text = Words(f"its format {version} is of a later Scenarium", f"其格式 {version} 属于更新版本的 Scenarium")
                    raise ScenariumError("SCN-4127", reason=text, file=self.path)
                for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = FULL"):  # an accepted job outlives a power cut
                    connection.execute(f"PRAGMA {pragma}")
            with self._change() as connection:
                for statement in _TABLES.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {FORMAT}")
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._use() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a full disk may have rolled it back
                    connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _use(self) -> Iterator[sqlite3.Connection]:
        if self._connection is None:
            raise ScenariumError("SCN-4127", reason=Words("it is closed", "已关闭"), file=self.path)
        with self._guard():
            yield self._connection

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as fault:
            raise self._unusable(fault) from fault

    def _unusable(self, fault: Exception) -> ScenariumError:
        text = getattr(fault, "strerror", None) or str(fault)
        return ScenariumError("SCN-4127", reason=Words(text, text), file=self.path)
