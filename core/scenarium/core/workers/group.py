"""A worker process that several scenarios share, where a process of its own is dear for each: on a GPU each has a context of some hundred MB.

Every member has a socket, a stderr and a thread of its own, and is served as in a process of its own; it knows nothing of the others. But they
share the interpreter's lock, and the death of one is the death of all. A member's end frees its model, not the libraries that it imported.

The process is told by its hello that it is a group's (``group``: its name). It answers with ``ready``, and gets one message a member, a byte with two
descriptors (the member's socket, its stderr), until the socket ends. It sends the byte back for each that it took in.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from scenarium.core import devices, heap
from scenarium.core.workers import frames

_own = threading.local()


class _Printed:
    """``sys.stdout`` and ``sys.stderr``: what a member's thread prints goes to the member's own stderr, all else to the process's."""

    def __init__(self, rest: TextIO) -> None:
        self._rest = rest

    def write(self, text: str) -> int:
        written: int = self._stream.write(text)
        return written

    def flush(self) -> None:
        self._stream.flush()

    @property
    def _stream(self) -> TextIO:
        found: TextIO = getattr(_own, "stream", self._rest)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def host(control: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    """Have ``serve`` serve members until the gateway closes ``control`` or ends; ends the process."""
    heap.return_freed()  # of a member that leaves
    sys.stdout, sys.stderr = _Printed(sys.stdout), _Printed(sys.stderr)
    control.sendall(frames.json_frame(frames.READY, {"proto": frames.PROTO, "pid": os.getpid()}))
    while True:
        with contextlib.suppress(OSError):
            message, fds, _, _ = socket.recv_fds(control, 1, 2)
            if message:
                control.sendall(message)
                threading.Thread(target=_member, args=(socket.socket(fileno=fds[0]), fds[1], serve), daemon=True).start()
                continue
        os._exit(0)


def print_as(stream: TextIO | None) -> None:
    """Let the present thread print where its member does; ``mine()`` of the member's thread."""
    if stream:
        _own.stream = stream


def mine() -> TextIO | None:
    """Where the present thread prints, if it is a member's."""
    return getattr(_own, "stream", None)


def _member(sock: socket.socket, stderr: int, serve: Callable[[socket.socket], None]) -> None:
    with sock, open(stderr, "w", encoding="utf8", errors="backslashreplace", buffering=1) as stream:
        _own.stream = stream
        try:
            serve(sock)
        except OSError:
            pass  # the gateway let this member go
        except BaseException:
            traceback.print_exc()
        gc.collect()  # a model may be part of a cycle
        devices.give_back()
        heap.trim()
