"""One worker process seen from the event loop: its socket, its stderr, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import traceback
from collections.abc import Mapping
from typing import Any, Protocol, cast

from scenarium.core.devices import DeviceMemory
from scenarium.core.workers import frames
from scenarium.gateway import logs
from scenarium.gateway.requests import Request
from scenarium.gateway.zygotes import Nursery, Process

_PROBE = 1 << 63
"""Above the ids of all requests."""
_NOTHING = object()
PIECE_S = 0.5
LINES_S = 1000
"""Most printed lines of a worker that are taken in a second; more are counted and left out."""
_READS, _PAUSE_S = 4, 0.02
"""Most reads of what it prints at once, of 64 KiB each, and how long the others have their turn then."""


class Owner(Protocol):
    """What a link reports to."""

    name: str

    def answered(self, link: WorkerLink, answer: frames.Answer) -> None:
        """One item's answer, or a stream's end."""

    def pump(self) -> None:
        """All answers that came together are in."""

    def part(self, link: WorkerLink, rid: int, chunk: bytes) -> None:
        """A part of a stream."""

    def logged(self, link: WorkerLink, rid: int, entry: dict[str, Any]) -> None:
        """A masked log entry."""

    def called(self, calls: Mapping[str, int], breaker: str) -> str:
        """What became of calls of its model to another server; the breaker's state, where that is one."""

    def said(self, link: WorkerLink, line: str) -> None:
        """A line that the process printed."""

    def released(self, link: WorkerLink) -> None:
        """The link was retired and holds nothing."""

    def died(self, link: WorkerLink) -> None:
        """The process ended."""


class WorkerLink(asyncio.Protocol):
    """A ``Slot`` of the batcher backed by a process."""

    def __init__(self, owner: Owner, version: int, process: Process, nursery: Nursery) -> None:
        self.owner = owner
        self.version = version
        self.process = process
        self.nursery = nursery
        self.max_batch = 1
        self.concurrency = 0
        self.pure = True
        self.streams = False
        self.load_ms = self.threads = self.seat = 0
        self.device_memory: DeviceMemory | None = None
        """What it said last of its accelerator."""
        self.breaker: str | None = None
        """The state of its way to another server; None: it has none."""
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[dict[str, Any] | None] = loop.create_future()
        """The worker's fault (see ``frames``), or None when it can serve. ``ConnectionError`` if it died before."""
        self.ended: asyncio.Future[None] = loop.create_future()
        self.status: int | None = None
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._line = b""
        self._taken = self._left_out = 0
        self._second = time.monotonic()
        """When the second began of which ``_taken`` lines were taken."""
        self.heard_at = self.answered_at = time.monotonic()
        """When anything came from it, and when an answer did."""
        self.well = True
        """Whether its last answer to its own sample was one; see ``watchdog``."""
        self.watched = False
        self._pongs: dict[int, asyncio.Future[None]] = {}
        self._probes: dict[int, asyncio.Future[int]] = {}
        self._gone = False

    @property
    def serving(self) -> bool:
        """Whether it was ready and has not ended."""
        return self.ready.done() and not self.ended.done()

    async def open(self, hello: dict[str, Any]) -> None:
        """Connect and say hello."""
        self.threads = hello["threads"]
        loop = asyncio.get_running_loop()
        self.process.sock.setblocking(False)
        os.set_blocking(self.process.stderr, False)
        loop.add_reader(self.process.stderr, self._read_stderr)
        if self.process.pidfd is not None:
            loop.add_reader(self.process.pidfd, self._exited)
        await loop.create_unix_connection(lambda: self, sock=self.process.sock)
        self._send(frames.json_frame(frames.HELLO, hello))

    # ── the batcher's side ────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, batch: list[Request], now: float) -> None:
        items = [
            frames.Item(
                r.rid,
                r.body,
                r.content_type,
                max(1, min(int((r.deadline - now) * 1000), 0xFFFFFFFF)),
                frames.STREAM if r.stream else frames.INFER if r.infer else frames.PREDICT,
                r.language,
                r.trace,
                r.key,
            )
            for r in batch
        ]
        self._send(frames.batch_frame(items))

    def cancel(self, request: Request) -> None:
        self._send(frames.rid_frame(frames.CANCEL, request.rid))

    def kill(self, reason: str = "it hangs") -> None:
        logs.event("warning", "worker_killed", scenario=self.owner.name, pid=self.process.pid, reason=reason)
        self.process.kill()

    def release(self) -> None:
        self.owner.released(self)

    # ── the supervisor's side ─────────────────────────────────────────────────────────────────────────────────────────

    async def ping(self, timeout: float) -> bool:
        """Whether the listening thread answers in time."""
        token = max(self._pongs, default=0) + 1
        pong = self._pongs[token] = asyncio.get_running_loop().create_future()
        self._send(frames.rid_frame(frames.PING, token))
        return await self._told(self._pongs, token, pong, timeout) is not _NOTHING

    async def probe(self, body: bytes, timeout: float) -> int | None:
        """Ask for one answer past the queue: its status, or None where none came in time."""
        rid = max(self._probes, default=_PROBE) + 1
        status = self._probes[rid] = asyncio.get_running_loop().create_future()
        self._send(frames.batch_frame([frames.Item(rid, body, "application/json", int(timeout * 1000))]))
        told = await self._told(self._probes, rid, status, timeout)
        return told if isinstance(told, int) else None

    def probed(self, rid: int, status: int) -> None:
        """An answer came that no request waits for: that of a probe, or of a request that has ended."""
        waiting = self._probes.get(rid)
        if waiting and not waiting.done():
            waiting.set_result(status)

    async def _told(self, table: dict[int, asyncio.Future[Any]], key: int, future: asyncio.Future[Any], timeout: float) -> Any:
        """The answer, waited for in pieces: time in which this process itself did not run is not the worker's."""
        try:
            while timeout > 0 and not (future.done() or self.ended.done()):
                await asyncio.wait({future, self.ended}, timeout=min(PIECE_S, timeout), return_when=asyncio.FIRST_COMPLETED)
                timeout -= PIECE_S
            return future.result() if future.done() else _NOTHING
        finally:
            table.pop(key, None)

    async def drain(self, timeout: float) -> None:
        """Let it finish and exit; kill it when it does not."""
        self._send(frames.frame(frames.DRAIN))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.ended), timeout)
        await self.end()

    async def end(self) -> None:
        """Kill it, and wait until it is gone."""
        if not self.ended.done():
            self.process.kill()
            await asyncio.shield(self.ended)

    # ── the socket's side ─────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of asyncio's

    def data_received(self, data: bytes) -> None:
        try:
            self._frames(data)
        except Exception as fault:
            # The process runs a plugin's code, and whatever it wrote, it harms nobody but itself: what it held is treated as after a death.
            reason = f"it wrote what is no frame: {type(fault).__name__}: {fault}"
            logs.event("error", "worker_garbled", scenario=self.owner.name, pid=self.process.pid, reason=reason, traceback=traceback.format_exc(limit=-3))
            self._buffer.clear()
            self.process.kill()
            if self._transport:
                self._transport.abort()

    def _frames(self, data: bytes) -> None:
        """Take all whole frames in."""
        self.heard_at = time.monotonic()
        buffer = self._buffer
        buffer += data
        view = memoryview(buffer)
        at, end = 0, len(buffer)
        answers = 0
        try:
            while end - at >= 5:
                length, kind = frames.HEAD.unpack_from(buffer, at)
                if not 1 <= length <= frames.LARGEST_ANSWER:
                    raise ValueError(f"a frame of {length} bytes")
                if end - at < 4 + length:
                    break
                with view[at + 5 : at + 4 + length] as body:
                    if kind in (frames.ITEM, frames.END):
                        self.owner.answered(self, frames.read_answer(body))
                        answers += 1
                    else:
                        self._other(kind, body)
                at += 4 + length
        finally:
            view.release()
        del buffer[:at]
        if answers:
            self.answered_at = self.heard_at
            self.owner.pump()

    def _other(self, kind: int, body: memoryview) -> None:
        if kind == frames.CHUNK:
            self.owner.part(self, frames.RID.unpack_from(body)[0], bytes(body[8:]))
        elif kind == frames.READY:
            told = json.loads(bytes(body))
            self.max_batch, self.pure, self.streams = min(_count(told["max_batch"]), frames.LARGEST_BATCH), bool(told["pure"]), bool(told["streams"])
            self.concurrency = 0 if told["concurrency"] == "batch" else _count(told["concurrency"])
            self.load_ms = int(told["load_ms"])
            self._device(told.get("device_memory"))
            self.ready.set_result(None)
        elif kind == frames.FAULT:
            fault = json.loads(bytes(body))
            texts = {lang: {key: str(fault[lang][key]) for key in ("title", "hint")} for lang in frames.LANGUAGES}
            self.ready.set_result({"code": str(fault["code"]), **texts})
        elif kind == frames.PONG:
            pong = self._pongs.get(frames.RID.unpack_from(body)[0])
            self._device(json.loads(bytes(body[8:]) or b"null"))
            if pong and not pong.done():
                pong.set_result(None)
        elif kind == frames.FIGURES:
            told = json.loads(bytes(body))
            calls = {str(outcome): int(count) for outcome, count in dict(told["calls"]).items()}
            self.breaker = self.owner.called(calls, str(told["breaker"]))
        elif kind == frames.LOG:
            self.owner.logged(self, frames.RID.unpack_from(body)[0], dict(json.loads(bytes(body[8:]))))
        else:
            raise ValueError(f"a frame of kind {kind}")

    def _device(self, told: list[Any] | None) -> None:
        if told:
            device, *sizes = told
            self.device_memory = DeviceMemory(str(device), *map(int, sizes))

    def connection_lost(self, exc: Exception | None) -> None:
        # Whatever it had answered has been read; a process that closed its socket but lives on serves nobody.
        self._transport = None
        self.process.abandon()
        if self.process.pidfd is None:
            self.status = self.process.wait()
            self._over()
        elif self._gone:
            self._over()

    def _send(self, data: bytes) -> None:
        if self._transport:
            self._transport.write(data)

    def _exited(self) -> None:
        loop = asyncio.get_running_loop()
        assert self.process.pidfd is not None
        loop.remove_reader(self.process.pidfd)
        self._gone = True
        self.status = self.process.reap()
        if self._transport is None:
            self._over()
        else:
            # Its last answers may still lie in the socket, which ends with it; a child of its own may hold a copy open.
            loop.call_later(0.5, self._over)

    def _over(self) -> None:
        if self.ended.done():
            return
        loop = asyncio.get_running_loop()
        self._read_stderr()
        self._tell_left_out()
        loop.remove_reader(self.process.stderr)
        self.process.close()
        if self._transport:
            self._transport.abort()
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("the worker ended while it loaded"))
            self.ready.exception()
        self.ended.set_result(None)
        self.owner.died(self)

    def _read_stderr(self) -> None:
        if self.ended.done():
            return
        loop, descriptor = asyncio.get_running_loop(), self.process.stderr
        try:
            for _ in range(_READS):
                data = os.read(descriptor, 65536)
                if not data:
                    loop.remove_reader(descriptor)
                    return
                self._printed(data)
        except OSError:  # nothing more for now
            loop.add_reader(descriptor, self._read_stderr)
            return
        # It prints faster than it is read. Whoever waits for the loop comes first; a full pipe makes the worker wait.
        loop.remove_reader(descriptor)
        loop.call_later(_PAUSE_S, self._read_stderr)

    def _printed(self, data: bytes) -> None:
        *lines, rest = (self._line + data).split(b"\n")
        self._line = rest[:2000]
        now = time.monotonic()
        if now - self._second >= 1:
            self._second, self._taken = now, 0
            self._tell_left_out()
        for line in lines[: max(0, LINES_S - self._taken)]:
            self.owner.said(self, line[:2000].decode("utf8", "replace"))
        self._left_out += max(0, self._taken + len(lines) - LINES_S) if self._taken < LINES_S else len(lines)
        self._taken = min(LINES_S, self._taken + len(lines))

    def _tell_left_out(self) -> None:
        if self._left_out:
            self.owner.said(self, f"[{self._left_out} lines left out: more than {LINES_S} in a second]")
            self._left_out = 0


def _count(value: Any) -> int:
    """A number that a worker told, at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"a count of {value!r}")
    return value


def describe_exit(status: int | None) -> tuple[str, str]:
    """How a process ended, in English and Chinese."""
    if status is None:
        return "it ended", "进程已退出"
    if status < 0:
        import signal

        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"it was ended by {name}", f"进程被 {name} 终止"
    return f"it exited with status {status}", f"进程以状态码 {status} 退出"
