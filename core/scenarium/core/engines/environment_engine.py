"""The engine that is another interpreter: a process of the scenario's environment, asked by methods over its stdin and stdout.

``EnvironmentProcess`` is one run of it; ``EnvironmentEngine`` keeps one running. Both may be called from any thread. The other end and the protocol
stand in ``environment_side.py``.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from scenarium.core.engines import environment_side as side
from scenarium.core.environments import require
from scenarium.core.errors import ScenariumError
from scenarium.core.types import Environment

log = logging.getLogger("scenarium.environment")

EXITED, STARTING, LATE, FAILED = "SCN-6007", "SCN-6008", "SCN-6009", "SCN-6010"
SCRIPT = "env_main.py"
SHORT = 1 << 14
"""Bytes that surely fit into the buffer of a pipe beside what small requests may already lie there."""


class EnvironmentProcess:
    """One process of an environment. At most ``limit`` requests are open at once; the next one waits for a place."""

    def __init__(self, environment: Environment, settings: Mapping[str, Any], *, limit: int = 64, environ: Mapping[str, str] | None = None) -> None:
        """Start the process; ``wait_ready`` must follow.

        ``settings`` (JSON values) are what ``start`` of the plugin's ``env_main.py`` receives; ``environ`` is added to the variables of this process.

        Raises:
            ScenariumError: SCN-6004 (the environment was not made yet, with the command that makes it).
        """
        self.name = environment.name
        python = require(environment)
        command = [str(python), "-I", side.__file__, str(environment.folder / SCRIPT)]
        pipe = subprocess.PIPE
        self.popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env={**os.environ, **(environ or {})})
        assert self.popen.stdin
        self._stdin = self.popen.stdin
        self.lines: deque[str] = deque(maxlen=20)
        """The last lines of its stderr."""
        self.ready: dict[str, Any] | None = None
        self._ids = itertools.count(1)
        self._open: dict[int, queue.SimpleQueue[tuple[dict[str, Any], bytes]]] = {}
        self._places = threading.BoundedSemaphore(limit)
        self._lock = threading.Lock()
        self._first: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._errors = threading.Thread(target=self._copy_stderr, daemon=True, name=f"{self.name} stderr")
        self._errors.start()
        threading.Thread(target=self._read, daemon=True, name=f"{self.name} answers").start()
        self._send({"settings": dict(settings)})

    def wait_ready(self, timeout: float) -> dict[str, Any]:
        """Wait for the ready message and return it: ``proto``, ``pid``, ``python`` and what the service added.

        Raises:
            ScenariumError: what ``start`` raised there; SCN-6007 (it exited), SCN-6009 (not ready in time; it is ended).
        """
        try:
            first = self._first.get(timeout=timeout)
        except queue.Empty:
            self.close(grace=0)
            raise ScenariumError(LATE, name=self.name, method="start", seconds=round(timeout)) from None
        if "error" in first:
            self.close()
            raise self._error(first["error"])
        ready: dict[str, Any] = first["ready"]
        self.ready = ready
        return ready

    @property
    def alive(self) -> bool:
        """Whether it can still answer."""
        return not self._ended.is_set()

    def call(self, method: str, *, body: bytes = b"", timeout: float = 60.0, **args: Any) -> Any:
        """Call a method of the service with JSON values and raw bytes; return its JSON value, or its bytes.

        Raises:
            ScenariumError: what the method raised (SCN-6010 for what is no ``Fault``), SCN-6007 (it exited), SCN-6009 (no answer within ``timeout`` seconds).
        """
        *_, last = self._exchange(method, args, body, timeout)
        return last

    def stream(self, method: str, *, timeout: float = 60.0, **args: Any) -> Iterator[Any]:
        """Yield what an async generator of the service yields. ``timeout`` is the longest wait for the next part, in seconds.

        Closing the iterator cancels the work there. Raises as ``call``.
        """
        exchange = self._exchange(method, args, b"", timeout)
        held = [next(exchange)]
        for part in exchange:
            yield held.pop()
            held.append(part)

    def responds(self, timeout: float = 5.0) -> bool:
        """Whether its loop still turns: False for a process that hangs or is gone."""
        try:
            *_, last = self._exchange("_ping", {}, b"", timeout, bounded=False)
        except ScenariumError:
            return False
        return last is None

    def close(self, grace: float = side.GRACE + 2) -> None:
        """Close its input, which ends it; kill it after ``grace`` seconds. May be called again."""
        # A writer may hold the lock because the process no longer reads; then only killing it helps.
        if self._lock.acquire(timeout=grace):
            with contextlib.suppress(BrokenPipeError):
                self._stdin.close()
            self._lock.release()
        else:
            self.popen.kill()
        try:
            self.popen.wait(grace)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self._ended.wait(5)

    def _exchange(self, method: str, args: dict[str, Any], body: bytes, timeout: float, *, bounded: bool = True) -> Iterator[Any]:
        """Send one request; yield its chunks, and last its value."""
        deadline = time.monotonic() + timeout
        late = ScenariumError(LATE, name=self.name, method=method, seconds=round(timeout, 1))
        if bounded and not self._places.acquire(timeout=timeout):
            raise late
        ident = next(self._ids)
        answers: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()
        self._open[ident] = answers
        finished = False
        try:
            # Registered before this look: either the reader's farewell finds the request, or this sees that it is over.
            if not self.alive:
                raise self._exited()
            self._send({"id": ident, "method": method, "args": args}, body, timeout)
            while True:
                header, raw = answers.get(timeout=max(0.0, deadline - time.monotonic()))
                if "error" in header:
                    finished = True
                    raise self._error(header["error"])
                if "chunk" not in header:
                    finished = True
                    yield raw if header.get("bytes") else header["value"]
                    return
                yield header["chunk"]
                deadline = time.monotonic() + timeout
        except queue.Empty:
            raise late from None
        finally:
            del self._open[ident]
            if bounded:
                self._places.release()
            if not finished and self.alive:
                with contextlib.suppress(queue.Empty):
                    self._send({"cancel": ident})

    def _send(self, header: dict[str, Any], body: bytes = b"", timeout: float = 5.0) -> None:
        if not self._lock.acquire(timeout=timeout):
            raise queue.Empty
        # A process that stopped reading would block a long write for ever. What was half written cannot be taken back, so it is ended then.
        watchdog = threading.Timer(timeout, self.popen.kill) if len(body) > SHORT else None
        try:
            if watchdog:
                watchdog.start()
            # Where it is gone the reader tells everyone who waits.
            with contextlib.suppress(BrokenPipeError, ValueError):
                side.write_frame(self._stdin, header, body)
        finally:
            if watchdog:
                watchdog.cancel()
            self._lock.release()

    def _read(self) -> None:
        assert self.popen.stdout
        while frame := side.read_frame(self.popen.stdout):
            header = frame[0]
            if "id" not in header:
                self._first.put(header)
            elif waiting := self._open.get(header["id"]):
                waiting.put(frame)
        self.popen.stdout.close()
        self.popen.wait()
        self._errors.join(1)
        self._ended.set()
        gone = {"error": {"code": EXITED, "values": self._exited().values}}
        self._first.put(gone)
        for waiting in list(self._open.values()):
            waiting.put((gone, b""))

    def _copy_stderr(self) -> None:
        assert self.popen.stderr
        for line in self.popen.stderr:
            text = line.decode("utf8", "replace").rstrip()
            self.lines.append(text)
            log.info("%s: %s", self.name, text)
        self.popen.stderr.close()

    def _exited(self) -> ScenariumError:
        last = next((line.strip() for line in reversed(self.lines) if line.strip()), "-")
        return ScenariumError(EXITED, name=self.name, code_=self.popen.poll(), last=last)

    def _error(self, error: dict[str, Any]) -> ScenariumError:
        return ScenariumError(error["code"], **{"name": self.name, **error["values"]})


class EnvironmentEngine:
    """Keeps one process of an environment running: started at once, restarted with back-off when it exits or hangs.

    While it starts again, calls raise SCN-6008 (503), so no request waits for tens of seconds.
    """

    def __init__(
        self,
        environment: Environment,
        settings: Mapping[str, Any],
        *,
        limit: int = 64,
        start_timeout: float = 300.0,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Start and wait until it is ready. Raises as ``EnvironmentProcess`` and ``wait_ready``."""
        self._make = partial(EnvironmentProcess, environment, settings, limit=limit, environ=environ)
        self._start_timeout = start_timeout
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._starting = False
        self.name = environment.name
        self.process = self._started()

    def call(self, method: str, *, body: bytes = b"", timeout: float = 60.0, **args: Any) -> Any:
        """As ``EnvironmentProcess.call``; SCN-6008 while it starts again."""
        process = self._usable()
        try:
            return process.call(method, body=body, timeout=timeout, **args)
        except ScenariumError as fault:
            self._watch(process, fault)
            raise

    def stream(self, method: str, *, timeout: float = 60.0, **args: Any) -> Iterator[Any]:
        """As ``EnvironmentProcess.stream``; SCN-6008 while it starts again."""
        process = self._usable()
        try:
            yield from process.stream(method, timeout=timeout, **args)
        except ScenariumError as fault:
            self._watch(process, fault)
            raise

    def close(self) -> None:
        """End the process for good."""
        self._closed.set()
        self.process.close()

    def _started(self) -> EnvironmentProcess:
        process = self._make()
        try:
            process.wait_ready(self._start_timeout)
        except BaseException:
            process.close(grace=0)
            raise
        return process

    def _usable(self) -> EnvironmentProcess:
        with self._lock:
            if self._starting:
                raise ScenariumError(STARTING, name=self.name)
            process = self.process
        if not process.alive:
            self._revive(process)
            raise ScenariumError(STARTING, name=self.name)
        return process

    def _watch(self, process: EnvironmentProcess, fault: ScenariumError) -> None:
        """After a call that failed: replace a process that is gone, or that is late and does not even answer a ping."""
        if fault.code == EXITED or (fault.code == LATE and not process.responds()):
            self._revive(process)

    def _revive(self, dead: EnvironmentProcess) -> None:
        with self._lock:
            if self._starting or self.process is not dead or self._closed.is_set():
                return
            self._starting = True
        threading.Thread(target=self._restart, args=(dead,), daemon=True, name=f"{self.name} restart").start()

    def _restart(self, dead: EnvironmentProcess) -> None:
        dead.close(grace=0)
        delay = 0.25
        while not self._closed.wait(delay):
            try:
                fresh = self._started()
            except ScenariumError as fault:
                log.error("%s does not start: %s", self.name, fault)
                delay = min(delay * 2, 30.0)
                continue
            with self._lock:
                self.process, self._starting = fresh, False
            if self._closed.is_set():
                fresh.close()
            return
