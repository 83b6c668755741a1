"""The zygote: a single-threaded process that has imported what workers share, and forks them on command.

It runs no operation and touches no device, so that a fork is safe and cheap; ``gc.freeze`` keeps the shared pages shared. It
speaks JSON over a sequenced-packet socket:

- to it: ``{"fork": id}`` with two descriptors (the worker's socket, its stderr); ``{"retire": true}``: exit, leave the children
- from it: ``{"ready": true, "failed": {module: reason}}``; ``{"id": id, "pid": pid}`` with the child's pidfd, or ``{"id": id, "fault": [errno,
  text]}`` where the system makes none; ``{"exit": pid, "status": code}``

The socket's end without ``retire`` means that the gateway was killed: the children are ended too.

Started as ``python -m scenarium.core.workers.zygote FD MODULE…``.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence

CORE = ("scenarium.core.workers.process", "scenarium.core.defaults", "scenarium.core.acceptance", "scenarium.core.schemas", "scenarium.core.relay")
BARE = (*CORE, "numpy", "pydantic", "tokenizers", "PIL.Image", "pluggy", "python_multipart")
"""What every worker needs or, where it is installed, may need."""
TORCH = (*BARE, "torch", "safetensors.torch", "scenarium.core.engines.torch_engine")


def main(argv: Sequence[str]) -> None:
    """Import, freeze, and fork until the gateway goes."""
    control = socket.socket(fileno=int(argv[1]))
    # A signal to the process group (Ctrl-C, systemd) must not end workers before the gateway has drained them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    failed = {}
    for module in argv[2:]:
        try:
            importlib.import_module(module)
        except BaseException as fault:
            failed[module] = f"{type(fault).__name__}: {fault}"
    gc.collect()
    gc.freeze()
    control.send(json.dumps({"ready": True, "failed": failed}).encode())
    _loop(control)


def _loop(control: socket.socket) -> None:
    awake, wake = os.pipe()
    for end in (awake, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: set[int] = set()
    while True:
        ready, _, _ = select.select([control.fileno(), awake], [], [])
        if awake in ready:
            os.read(awake, 4096)
            _reap(control, children)
        if control.fileno() in ready:
            try:
                message, fds, _, _ = socket.recv_fds(control, 65536, 2)
            except ConnectionResetError:
                continue  # it closed before it read all of ours; what it sent last is still to be read
            if not message:
                _end(children)
                return
            command = json.loads(message)
            if "retire" in command:
                _reap(control, children)  # of one that has just ended the signal may be on its way
                return
            _fork(control, (awake, wake), command["fork"], fds, children)


def _fork(control: socket.socket, pipe: tuple[int, int], ident: int, fds: list[int], children: set[int]) -> None:
    try:
        pid = os.fork()
    except OSError as fault:  # a limit of processes or of memory, which may be gone the next time
        control.send(json.dumps({"id": ident, "fault": [fault.errno, fault.strerror]}).encode())
        for fd in fds:
            os.close(fd)
        return
    if pid == 0:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            for end in pipe:
                os.close(end)
            _child(*fds)
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    children.add(pid)
    pidfd = os.pidfd_open(pid)
    socket.send_fds(control, [json.dumps({"id": ident, "pid": pid}).encode()], [pidfd])
    for fd in (pidfd, *fds):
        os.close(fd)


def _child(sock: int, stderr: int) -> None:
    """What a fork does: its own stderr, process group and random numbers, then a worker's life."""
    from scenarium.core.workers import process

    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(stderr, 1)
    os.dup2(stderr, 2)
    os.close(null)
    os.close(stderr)
    try:
        os.setpgid(0, 0)
        reseed()
        process.serve(socket.socket(fileno=sock))
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()


def reseed() -> None:
    """Give this process random numbers of its own: a fork inherits the generators' state."""
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(int.from_bytes(os.urandom(4), "little"))
    if torch := sys.modules.get("torch"):
        torch.manual_seed(int.from_bytes(os.urandom(7), "little"))


def _reap(control: socket.socket, children: set[int]) -> None:
    while children:
        ended = wait_for_one()
        if not ended:
            return
        pid, status = ended
        children.discard(pid)
        with contextlib.suppress(OSError):
            control.send(json.dumps({"exit": pid, "status": status}).encode())


def wait_for_one() -> tuple[int, int] | None:
    """Number and exit status of a child that has ended, with all that it had started; None where there is none."""
    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    end_group(ended.si_pid)
    pid, status = os.waitpid(ended.si_pid, 0)
    return pid, os.waitstatus_to_exitcode(status)


def end_group(pid: int) -> None:
    """End what a worker has started and left: its process group. The number is the worker's own as long as nobody has waited for it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _end(children: set[int]) -> None:
    """The gateway was killed: workers see it on their own sockets; one that is stuck in native code is killed."""
    until = time.monotonic() + 1
    while children and time.monotonic() < until:
        if ended := wait_for_one():
            children.discard(ended[0])
        else:
            time.sleep(0.02)
    for pid in children:
        end_group(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv)
