"""Scenarios that share a worker process (``serve.worker_group``): on a GPU, one process a device unless they are told otherwise.

For a scenario nothing differs: it has a link of its own to the process, with its own socket and stderr. See ``scenarium.core.workers.group``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scenarium.core.workers import frames
from scenarium.gateway import logs
from scenarium.gateway.zygotes import Nursery, Process

if TYPE_CHECKING:
    from scenarium.core.config import ServeConfig

GPUS = Path("/proc/driver/nvidia/gpus")
"""Has a folder for each GPU where NVIDIA's driver is loaded."""


@dataclass(slots=True)
class Share(Process):
    """A member's part of a group's process."""

    host: Host | None = None

    def kill(self) -> None:
        """End the process, with all members."""
        if self.host:
            self.host.kill()

    def abandon(self) -> None:
        """End this member's socket; the others go on."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the descriptors; the last member's end is the process's."""
        os.close(self.stderr)
        if self.host:
            self.host.leave()
            self.host = None


class Host:
    """A group's process."""

    def __init__(self, name: str, process: Process, gone: Callable[[Host], None]) -> None:
        self.name = name
        self.process = process
        self.gone = gone
        self.members = 0
        self.ended = False
        self._asked: deque[asyncio.Future[bool]] = deque()
        """Who waits for a place, oldest first."""

    async def open(self) -> None:
        """Have it ready for members.

        Raises:
            ConnectionError: it died.
        """
        loop = asyncio.get_running_loop()
        control = self.process.sock
        control.setblocking(False)
        os.set_blocking(self.process.stderr, False)
        loop.add_reader(self.process.stderr, self._read)
        try:
            await loop.sock_sendall(control, frames.json_frame(frames.HELLO, {"proto": frames.PROTO, "group": self.name}))
            if not await loop.sock_recv(control, 65536):
                raise ConnectionError("the group's process ended")
        except BaseException:
            self._end()
            raise
        loop.add_reader(control, self._heard)

    async def join(self) -> Share:
        """A new member, once the process has taken it in: one that is about to die takes nobody in.

        Raises:
            OSError: it died, or no descriptors are left.
        """
        taken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        self.members += 1
        try:
            socket.send_fds(self.process.sock, [b"m"], [theirs.fileno(), write])
            self._asked.append(taken)
            if not await taken:
                raise ConnectionResetError
        except BaseException:
            ours.close()
            os.close(read)
            self.leave()
            raise
        finally:
            theirs.close()
            os.close(write)
        return Share(self.process.pid, ours, read, None, None, self)

    def leave(self) -> None:
        """A member has ended."""
        self.members -= 1
        if not self.members:
            self._end()

    def kill(self) -> None:
        """End it at once; nobody joins it any more."""
        self.gone(self)
        self.process.kill()

    def _heard(self) -> None:
        """It took members in, a byte each, or has ended."""
        try:
            told = self.process.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            told = b""
        for _ in told:
            self._answer(True)
        if not told:
            self._end()

    def _answer(self, taken: bool) -> None:
        asked = self._asked.popleft()
        if not asked.done():  # given up
            asked.set_result(taken)

    def _end(self) -> None:
        """The process ends, or has ended."""
        if self.ended:
            return
        self.ended = True
        while self._asked:
            self._answer(False)
        loop = asyncio.get_running_loop()
        self._read()
        for descriptor in (self.process.sock, self.process.stderr):
            loop.remove_reader(descriptor)
        self.process.sock.close()
        self.process.reap()
        self.process.close()
        self.gone(self)

    def _read(self) -> None:
        """What no member's thread printed, native libraries among it."""
        with contextlib.suppress(OSError):
            while data := os.read(self.process.stderr, 65536):
                for line in data.decode("utf8", "replace").splitlines():
                    logs.event("info", "worker_output", group=self.name, pid=self.process.pid, line=line[:2000])
            asyncio.get_running_loop().remove_reader(self.process.stderr)


class Groups:
    """The group processes of one gateway."""

    def __init__(self, nursery: Nursery) -> None:
        self.nursery = nursery
        self.hosts: dict[tuple[str, int], Host] = {}
        self._turn = asyncio.Lock()

    async def join(self, name: str, index: int, kind: str) -> Share:
        """A place in the ``index``-th process of a group, which is made where there is none.

        Raises:
            OSError: no process can be made.
        """
        async with self._turn:
            for _ in range(2):
                host = self.hosts.get((name, index))
                if host is None:
                    host = Host(name, await self.nursery.start(kind), self._gone)
                    await host.open()
                    self.hosts[name, index] = host
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    return await host.join()
                self._gone(host)  # its end is on its way
        raise ConnectionError("the group's process ended")

    def refresh(self) -> None:
        """Something was installed: who comes from now on shares no process that may have imported what was there before."""
        self.hosts.clear()

    def _gone(self, host: Host) -> None:
        for key in [key for key, each in self.hosts.items() if each is host]:
            del self.hosts[key]


def device_of(config: ServeConfig, kind: str) -> str | None:
    """The GPU of a scenario's workers; None: the processor."""
    if config.device.startswith("cuda"):
        return config.device if ":" in config.device else "cuda:0"
    return "cuda:0" if config.device == "auto" and kind == "torch" and any(GPUS.glob("*")) else None


def group_of(config: ServeConfig, kind: str) -> str | None:
    """The group of a scenario's workers; None: each has a process of its own."""
    return device_of(config, kind) if config.worker_group is None else config.worker_group or None
