"""Making worker processes: by a command to a zygote, or by spawning where fork is unsafe."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import glob
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scenarium.core import spans
from scenarium.core.workers.zygote import BARE, TORCH, end_group
from scenarium.gateway import logs

if TYPE_CHECKING:
    from scenarium.core.config import ServeConfig
    from scenarium.core.manifest import Manifest

FORK = sys.platform == "linux" and hasattr(os, "pidfd_open")
"""Whether workers are forked from zygotes; elsewhere each is a fresh interpreter."""
STATUS_S = 5.0
"""How long an exit status is kept for whoever asks for it; later its number may be another process's."""
_SUBREAPER = 36
TORCH_MODULES = ("torch", "torchvision", "torchaudio", "transformers", "peft")


@dataclass(slots=True)
class Process:
    """A started worker process: our end of its socket, its stderr, and a descriptor that becomes readable when it ends."""

    pid: int
    sock: socket.socket
    stderr: int
    pidfd: int | None
    popen: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """End it at once. The descriptor, unlike the number, cannot name another process."""
        try:
            if self.pidfd is not None:  # None too once it has ended
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            elif self.popen:
                self.popen.kill()
        except ProcessLookupError:
            pass

    def abandon(self) -> None:
        """End what serves this socket: the process."""
        self.kill()

    def reap(self) -> int | None:
        """Its exit status if it is our child (spawned, or orphaned by a zygote's death), once what it had started is ended too."""
        if self.pidfd is None:
            return self.popen.poll() if self.popen else None
        try:
            info = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if info is None:
                return None
            end_group(self.pid)
            if self.popen:
                return self.popen.poll()
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        except ChildProcessError:
            return None
        return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status

    def wait(self) -> int | None:
        """The exit status of a spawned process that was just killed."""
        return self.popen.wait() if self.popen else None

    def close(self) -> None:
        """Close the descriptors, once it has ended."""
        os.close(self.stderr)
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


class Zygote:
    """One zygote process, spoken to over a sequenced-packet socket."""

    def __init__(self, kind: str, modules: Sequence[str], on_exit: Callable[[int, int], None]) -> None:
        self.kind = kind
        self.modules = frozenset(modules)
        self.on_exit = on_exit
        self.dead = False
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._forks: dict[int, asyncio.Future[tuple[int, int]]] = {}
        self._count = 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ordered = [module for module in (*BARE, *TORCH, *sorted(modules)) if module in self.modules]
        environment = {
            **os.environ,
            # One op with a thread pool in the parent would hang the children's pools.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "RAYON_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
            "SCENARIUM_UNDESCRIBED": "1",
        }
        with theirs:
            command = [sys.executable, "-m", "scenarium.core.workers.zygote", str(theirs.fileno()), *dict.fromkeys(ordered)]
            self.popen = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment)
        ours.setblocking(False)
        self.control = ours
        asyncio.get_running_loop().add_reader(ours, self._receive)

    async def fork(self, sock: int, stderr: int) -> tuple[int, int]:
        """A child that serves ``sock``: its number and pidfd.

        Raises:
            ConnectionError: the zygote died.
            OSError: the system makes no more processes.
        """
        await self.ready()
        if self.dead:
            raise ConnectionError("the zygote ended")
        self._count += 1
        made: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        self._forks[self._count] = made
        try:
            socket.send_fds(self.control, [json.dumps({"fork": self._count}).encode()], [sock, stderr])
        except OSError as fault:
            self._gone()
            raise ConnectionError("the zygote ended") from fault
        return await made

    async def ready(self) -> None:
        """Wait until it can fork.

        Raises:
            ConnectionError: it died.
        """
        await asyncio.shield(self._ready)

    def retire(self) -> None:
        """Let it exit; its children stay."""
        if not self.dead:
            self.dead = True
            asyncio.get_running_loop().remove_reader(self.control)
            with contextlib.suppress(OSError):
                self.control.send(b'{"retire": true}')
            self.control.close()

    def _receive(self) -> None:
        try:
            message, fds, _, _ = socket.recv_fds(self.control, 65536, 1)
        except BlockingIOError:
            return
        except OSError:
            message, fds = b"", []
        if not message:
            self._gone()
            return
        told = json.loads(message)
        if "ready" in told:
            for module, reason in told["failed"].items():
                if not (module in TORCH and reason.startswith("ModuleNotFoundError")):  # those are optional
                    logs.event("warning", "preload_failed", zygote=self.kind, module=module, reason=reason)
            if not self._ready.done():
                self._ready.set_result(None)
        elif "id" in told:
            made = self._forks.pop(told["id"])
            if "fault" in told:
                if not made.done():
                    made.set_exception(OSError(*told["fault"]))
            elif made.done():  # nobody waits any more; the child sees its socket's end
                os.close(fds[0])
            else:
                made.set_result((told["pid"], fds[0]))
        else:
            self.on_exit(told["exit"], told["status"])

    def _gone(self) -> None:
        if self.dead:
            return
        self.dead = True
        asyncio.get_running_loop().remove_reader(self.control)
        self.control.close()
        fault = ConnectionError("the zygote ended")
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._forks.values()]
        for made in waiting:
            if not made.done():
                made.set_exception(fault)
                made.exception()  # a zygote may die while nobody waits for it
        logs.event("error", "zygote_died", zygote=self.kind, status=self.popen.poll())


class Nursery:
    """Where workers come from: a bare and a torch zygote, each made when it is first needed and made anew when it died or is stale."""

    def __init__(self, tracing: bool = False) -> None:
        from scenarium.gateway.groups import Groups  # its processes are made of those here

        self.tracing = tracing
        """Whether workers send spans."""
        self.zygotes: dict[str, Zygote] = {}
        more = spans.MODULES if tracing else ()
        self.preload: dict[str, set[str]] = {"bare": {*BARE, *more}, "torch": {*TORCH, *more}}
        self.groups = Groups(self)
        self.exits: dict[int, int] = {}
        """Exit status of the workers whose end a zygote reported lately."""
        self.retired: list[subprocess.Popen[bytes]] = []
        self.stamp = installed_stamp()
        self._left: set[int] = set()
        """Ended children that nobody had waited for when ``reap`` last looked."""
        if FORK:
            # A worker whose zygote died becomes our child, so its exit status is known and no zombie stays.
            ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)

    def want(self, kind: str, modules: Sequence[str]) -> None:
        """Have ``modules`` imported in the zygote before it forks; in a bare one those alone that bring no torch."""
        self.preload[kind].update(module for module in modules if kind == "torch" or not brings_torch(module))

    def warm(self, kind: str) -> None:
        """Start the zygote now, so that it imports while the version is read."""
        if FORK:
            self._zygote(kind)

    async def ready(self, kind: str) -> None:
        """Wait until the zygote has imported what it shares, or has failed to."""
        if FORK:
            with contextlib.suppress(ConnectionError):
                await self._zygote(kind).ready()

    async def start(self, kind: str) -> Process:
        """A new worker process. A zygote that dies meanwhile is made anew.

        Raises:
            OSError: no process can be made.
        """
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        try:
            if not FORK:
                return self._spawn(ours, theirs, read, write)
            for attempt in range(3):
                try:
                    pid, pidfd = await self._zygote(kind).fork(theirs.fileno(), write)
                except ConnectionError:
                    if attempt == 2:
                        raise
                else:
                    return Process(pid, ours, read, pidfd)
            raise ConnectionError
        except BaseException:
            ours.close()
            os.close(read)
            raise
        finally:
            theirs.close()
            os.close(write)

    def refresh(self) -> None:
        """Let zygotes go that imported what has been installed anew since."""
        stamp = installed_stamp()
        if stamp != self.stamp:
            self.stamp = stamp
            for zygote in self.zygotes.values():
                self._retire(zygote)
            self.zygotes.clear()
            self.groups.refresh()
        self.retired = [popen for popen in self.retired if popen.poll() is None]

    def reap(self) -> None:
        """Take away what our workers left: an orphan of theirs becomes our child, since we are the nearest reaper, or process 1 of a container.

        Whoever waits for a child of ours does so at once; what has ended and is still there a second time is nobody's.
        """
        ours = {zygote.popen.pid for zygote in self.zygotes.values()} | {popen.pid for popen in self.retired}
        found = {pid for pid in ended_children() if pid not in ours}
        for pid in found & self._left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._left = found - self._left

    async def close(self) -> None:
        """Let all zygotes go, and wait until they are gone."""
        for zygote in self.zygotes.values():
            self._retire(zygote)
        await asyncio.to_thread(self._wait)

    def _wait(self) -> None:
        for popen in self.retired:
            try:
                popen.wait(2)
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()

    def _zygote(self, kind: str) -> Zygote:
        zygote = self.zygotes.get(kind)
        if zygote and (zygote.dead or not self.preload[kind] <= zygote.modules):
            self._retire(zygote)
            zygote = None
        if zygote is None:
            zygote = self.zygotes[kind] = Zygote(kind, sorted(self.preload[kind]), self._exited)
        return zygote

    def _exited(self, pid: int, status: int) -> None:
        self.exits[pid] = status
        asyncio.get_running_loop().call_later(STATUS_S, self.exits.pop, pid, None)

    def _retire(self, zygote: Zygote) -> None:
        zygote.retire()
        self.retired.append(zygote.popen)

    def _spawn(self, ours: socket.socket, theirs: socket.socket, read: int, write: int) -> Process:
        command = [sys.executable, "-m", "scenarium.core.workers.process", str(theirs.fileno())]
        popen = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=write, stderr=write, process_group=0)
        pidfd = os.pidfd_open(popen.pid) if hasattr(os, "pidfd_open") else None
        return Process(popen.pid, ours, read, pidfd, popen)


def ended_children() -> list[int]:
    """Our children that have ended and were not waited for, as Linux's process table has them."""
    found = []
    for thread in glob.glob("/proc/self/task/*/children"):
        with contextlib.suppress(OSError):
            for pid in Path(thread).read_text().split():
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                        found.append(int(pid))
    return found


def installed_stamp() -> tuple[tuple[str, int], ...]:
    """Changes when a distribution is installed or removed: the modification times of the folders on the path."""
    stamp = []
    for folder in dict.fromkeys(sys.path):
        if folder.endswith(("site-packages", "dist-packages")):
            try:
                stamp.append((folder, os.stat(folder).st_mtime_ns))
            except OSError:
                continue
    return tuple(stamp)


def zygote_kind(config: ServeConfig, manifest: Manifest) -> Literal["bare", "torch"]:
    """Which zygote forks the workers of a version."""
    torch = bool(manifest.inputs) or any(map(brings_torch, manifest.preload))
    return "torch" if manifest.serving(config).engine == "torch" and torch else "bare"


def brings_torch(module: str) -> bool:
    """Whether importing ``module`` imports torch."""
    return module.partition(".")[0] in TORCH_MODULES
