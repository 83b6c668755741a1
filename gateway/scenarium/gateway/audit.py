"""The audit log: who asked what of which version, without what was asked. Opt-in (``[gateway] audit``), one JSON line a request.

A line holds ``n``, ``at``, ``key`` (id), ``method``, ``path``, ``scenario``, ``version``, ``request_id``, ``status`` (null where the client
left before an answer), ``body`` and ``answer`` (SHA-256 of the bytes that came and went; null where none did), ``prev`` (the ``hash`` of the
line before; 64 zeros in the first) and ``hash`` (SHA-256 of this line without it). So a line that is altered, taken out, put in or moved
breaks the chain at its place, and the last line is guarded too. Whoever can write the file can also write a whole new chain: the log line
``audit_head``, which the gateway writes at start, at the end and every hour, goes where log lines go, and ``scenarium audit verify --head``
checks that the file still holds it.

Lines are made and written by one thread, for which requests never wait. Where the disk is full, or the thread falls behind, lines wait in
memory (``MOST_ENTRIES``, ``MOST_BYTES``). Beyond that, or where the gateway ends first, they are dropped, counted
(``scenarium_audit_lost_total``), told in the log, and confessed by a ``lost`` line as soon as one can be written. With
``[gateway] audit_required`` nothing is dropped: while lines cannot be written no request is let in.

A line is with the operating system within ``PAUSE_S``; a killed gateway loses at most so much, a cut last line is removed at the next
start and confessed as ``cut``. The operating system is not asked to bring each line to the disk: a power cut may lose the last seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from scenarium.core.errors import ScenariumError
from scenarium.gateway import logs

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Send

    from scenarium.gateway.admission import Caller

START = "0" * 64
PAUSE_S = 0.05
RETRY_S = 1.0
"""How soon it tries again to write what could not be written."""
HEAD_S = 3600.0
TELL_S = 10.0
MOST_ENTRIES, MOST_BYTES = 100_000, 64 << 20
"""What may wait to be written: more is dropped, so that a dead disk costs no memory without end. Half of it is for what is let in already."""
AT_ONCE = 16
"""Lines of one write. Between writes the thread lets the others of this process run."""
HASH = ', "hash": "'


class _Bytes:
    """The bytes of a body or an answer as they pass: one piece is kept for the writer, which hashes it; many are hashed as they come."""

    __slots__ = ("complete", "running", "whole")

    def __init__(self) -> None:
        self.whole: bytes | None = None
        self.running: Any = None
        self.complete = False

    def add(self, piece: bytes, more: bool) -> None:
        self.complete = not more
        if not more and self.running is None:
            self.whole = piece
            return
        if self.running is None:
            self.running = hashlib.sha256()
        self.running.update(piece)

    @property
    def size(self) -> int:
        return len(self.whole) if self.whole else 0

    def digest(self) -> str | None:
        if self.running is not None:
            return str(self.running.hexdigest())
        return None if self.whole is None else hashlib.sha256(self.whole).hexdigest()


class Entry:
    """One request on its way to a line."""

    __slots__ = ("answer", "at", "body", "headers", "key", "method", "path", "scenario", "status")

    def __init__(self, method: str, path: str, scenario: str | None, caller: Caller) -> None:
        self.at = time.time()
        self.method, self.path, self.scenario = method, path, scenario
        self.key = caller.id or None
        self.status: int | None = None
        self.headers: Sequence[tuple[bytes, bytes]] = ()
        self.body, self.answer = _Bytes(), _Bytes()

    def receive(self, receive: Receive) -> Receive:
        """Hear the body."""

        async def heard() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not self.body.complete:
                self.body.add(message.get("body", b""), message.get("more_body", False))
            return message

        return heard

    def send(self, send: Send) -> Send:
        """Hear the answer."""

        async def heard(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status, self.headers = message["status"], message["headers"]
            else:
                self.answer.add(message.get("body", b""), message.get("more_body", False))
            await send(message)

        return heard

    @property
    def size(self) -> int:
        """Bytes that it holds in memory."""
        return self.body.size + self.answer.size

    def values(self) -> dict[str, Any]:
        """The line's members, the chain's excepted."""
        sent = dict(self.headers)
        version, request_id = sent.get(b"x-scenarium-version"), sent.get(b"x-request-id", b"")
        return {
            "at": datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds"),
            "key": self.key,
            "method": self.method,
            "path": self.path,
            "scenario": self.scenario,
            "version": int(version) if version else None,
            "request_id": request_id.decode("latin-1") or None,
            "status": self.status,
            "body": self.body.digest(),
            "answer": self.answer.digest(),
        }


class Audit:
    """The file and the thread that writes it. A file that was renamed (log rotation) is left alone; the chain goes on in a new one.

    Raises:
        ScenariumError: SCN-1105 (it cannot be written, another gateway writes it, or its last line is none).
    """

    def __init__(self, path: Path, required: bool = False) -> None:
        self.path = path
        self.required = required
        self.writable = True
        """Whether the last lines could be written."""
        self.lines = 0
        self._waiting: deque[Entry] = deque()
        # Each of these belongs to one thread: the first two to the requests', the others to the writer's.
        self._dropped = self._put = 0
        self._failed = self._confessed = self._taken = 0
        self._told = -TELL_S
        self._stop = threading.Event()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(f"{path}.lock", timeout=0)
            self._lock.acquire()
            self.count, self.head, cut = _end(path) if path.exists() else (0, START, 0)
            self._file = _open(path)
            self._good = path.stat().st_size - cut
            if cut:
                self._file.truncate(self._good)
                self._write([{"at": _now(), "event": "cut", "bytes": cut}])
        except Timeout:
            raise _unwritable(path, "another gateway writes it", "另一个网关正在写入") from None
        except OSError as fault:
            raise _unwritable(path, fault.strerror or str(fault), fault.strerror or str(fault)) from fault
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    @property
    def refuses(self) -> bool:
        """Whether no request may be let in, since its line could not be written."""
        return self.required and not (self.writable and self._has_room(MOST_ENTRIES // 2, MOST_BYTES // 2))

    def check(self) -> None:
        """Whether a request may be let in.

        Raises:
            ScenariumError: SCN-4114 (it may not).
        """
        if self.refuses:
            raise ScenariumError("SCN-4114")

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._dropped + self._failed

    def put(self, entry: Entry) -> None:
        """Take a finished request in; never waits, never raises."""
        size = entry.size
        if not self._has_room(MOST_ENTRIES, MOST_BYTES - size):
            self._dropped += 1
            return
        self._put += size
        self._waiting.append(entry)

    def _has_room(self, entries: int, size: int) -> bool:
        return len(self._waiting) < entries and self._put - self._taken <= size

    def close(self) -> None:
        """Write what waits and end the thread."""
        self._stop.set()
        self._thread.join()
        self._file.close()
        self._lock.release()

    def _run(self) -> None:
        next_head = 0.0
        while True:
            last = self._stop.wait(PAUSE_S if self.writable else RETRY_S)
            self._drain(last)
            if last or time.monotonic() >= next_head:
                next_head = time.monotonic() + HEAD_S
                logs.event("info", "audit_head", file=str(self.path), n=self.count, hash=self.head)
            if last:
                return

    def _drain(self, last: bool) -> None:
        """Write what waits; at the end the confession of lost lines too, which else comes before the next line."""
        while self._waiting or (last and self.lost > self._confessed):
            taken = [self._waiting[at] for at in range(min(AT_ONCE, len(self._waiting)))]
            size = sum(entry.size for entry in taken)
            lost = self.lost
            confession = [{"at": _now(), "event": "lost", "lines": lost - self._confessed}] if lost > self._confessed else []
            try:
                self._follow_rename()
                self._write([*confession, *(entry.values() for entry in taken)])
            except OSError as fault:
                self.writable = False
                if last:
                    self._failed += len(self._waiting)
                self._tell(fault)
                return
            self.writable = True
            for _ in taken:
                self._waiting.popleft()
            self._taken += size
            self._confessed = lost
            self.lines += len(taken)
            if confession:
                self._tell(None)

    def _follow_rename(self) -> None:
        try:
            if self.path.stat().st_ino == os.fstat(self._file.fileno()).st_ino:
                return
        except FileNotFoundError:
            pass
        fresh = _open(self.path)
        self._file.close()
        self._file, self._good = fresh, self.path.stat().st_size
        self._write([{"at": _now(), "event": "continued"}])

    def _write(self, entries: Sequence[dict[str, Any]]) -> None:
        """Chain and write in one piece; a piece that fails leaves the file as it was."""
        count, head, made = self.count, self.head, []
        for entry in entries:
            count += 1
            bare = json.dumps({"n": count, **entry, "prev": head}, ensure_ascii=False)[:-1]
            head = hashlib.sha256(bare.encode()).hexdigest()
            made.append(f'{bare}{HASH}{head}"}}\n')
        piece = "".join(made).encode()
        try:
            written = self._file.write(piece)
            if written != len(piece):
                raise OSError(f"only {written} of {len(piece)} bytes could be written")
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._good)
            raise
        self._good += len(piece)
        self.count, self.head = count, head

    def _tell(self, fault: OSError | None) -> None:
        """Log that lines cannot be written, at most once in ``TELL_S``, or how many were lost."""
        now = time.monotonic()
        if fault is None:
            logs.event("error", "audit_lost", file=str(self.path), lines=self.lost)
        elif now - self._told >= TELL_S:
            self._told = now
            logs.event("error", "audit_unwritable", file=str(self.path), reason=fault.strerror or str(fault), waiting=len(self._waiting), lost=self.lost)


def verify(paths: Sequence[Path], head: str | None = None) -> tuple[int, str]:
    """Walk the chain through these files, oldest first; returns how many lines it has and its last hash.

    Raises:
        ScenariumError: SCN-1106 with file and line, at the first line that is not as it was written; or ``head`` is no line's hash.
        OSError: a file cannot be read.
    """
    count, last, found = 0, START, head is None
    for path in paths:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                count, last = _check(path, number, raw, count, last)
                found = found or last == head
    if not found:
        raise _broken(paths[-1], None, f"no line has the hash {head}: it was cut off or written anew", f"没有哈希为 {head} 的行：日志被截断或重写")
    return count, last


def _check(path: Path, number: int, raw: bytes, count: int, last: str) -> tuple[int, str]:
    line = _parse(raw)
    if line is None:
        raise _broken(path, number, "this line was altered", "此行被改动")
    if line["n"] != count + 1:
        missing = f"line {line['n']} of the log stands where line {count + 1} belongs: lines were removed, added or moved"
        raise _broken(path, number, missing, f"日志第 {line['n']} 行出现在第 {count + 1} 行的位置：有行被删除、插入或移动")
    if line["prev"] != last:
        raise _broken(path, number, "this line does not follow the one before: one of them was replaced", "此行与上一行不相接：其中一行被替换")
    return count + 1, str(line["hash"])


def _open(path: Path) -> IO[bytes]:
    return open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o640))


def _parse(raw: bytes) -> dict[str, Any] | None:
    """A whole line whose hash is right."""
    bare, mark, rest = raw.rpartition(HASH.encode())
    digest = hashlib.sha256(bare).hexdigest()
    if not mark or rest != f'{digest}"}}\n'.encode():
        return None
    try:
        line: dict[str, Any] = json.loads(raw)
    except ValueError:
        return None
    return line if {"n", "prev"} <= set(line) else None


def _end(path: Path) -> tuple[int, str, int]:
    """Number and hash of the last whole line, and the bytes of a cut one after it.

    Raises:
        ScenariumError: SCN-1105.
    """
    last, cut = _tail(path)
    if not last:
        return 0, START, len(cut)
    line = _parse(last)
    if line is None:
        raise _unwritable(path, "its last line is not one of an audit log, or was altered", "其最后一行不是审计日志的内容，或已被改动")
    return line["n"], line["hash"], len(cut)


def _tail(path: Path) -> tuple[bytes, bytes]:
    """The last whole line (empty where there is none) and what follows it."""
    with open(path, "rb") as file:
        position, found = file.seek(0, os.SEEK_END), b""
        while position and found.count(b"\n") < 2:
            step = min(position, 1 << 16)
            position = file.seek(position - step)
            found = file.read(step) + found
            file.seek(position)
    lines, _, cut = found.rpartition(b"\n")
    return lines.rpartition(b"\n")[2] + b"\n" if lines else b"", cut


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _unwritable(path: Path, english: str, chinese: str) -> ScenariumError:
    return ScenariumError("SCN-1105", file=path, reason_en=english, reason_zh=chinese)


def _broken(path: Path, line: int | None, english: str, chinese: str) -> ScenariumError:
    return ScenariumError("SCN-1106", file=path, line=line, reason_en=english, reason_zh=chinese)
