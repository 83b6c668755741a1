"""A timer that one thread sets and another waits for, at about a microsecond a set."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from typing import Protocol

_MONOTONIC, _CLOSE_ON_EXEC = 1, 0o2000000


class Alarm(Protocol):
    """Waits until the time set last has passed. It may also go off although it was stopped, so the waiter looks for itself."""

    def start(self) -> None:
        """Go off ``seconds`` from now."""

    def stop(self) -> None:
        """Do not go off."""

    def wait(self) -> None:
        """Block until it goes off."""

    def close(self) -> None:
        """Nobody waits any more."""


class _KernelAlarm:
    """``timerfd``: the waiting thread sleeps in the kernel and takes no part in a start and stop."""

    def __init__(self, seconds: float) -> None:
        # PyDLL keeps the interpreter's lock over the call, which is shorter than giving it up and taking it again.
        libc = ctypes.PyDLL(None, use_errno=True)
        self._set = libc.timerfd_settime
        self._fd: int = libc.timerfd_create(_MONOTONIC, _CLOSE_ON_EXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        # struct itimerspec: interval and first expiry, each in seconds and nanoseconds.
        fields = ctypes.c_long * 4
        whole, rest = divmod(seconds, 1.0)
        self._on, self._off = fields(0, 0, int(whole), int(rest * 1e9)), fields(0, 0, 0, 0)

    def start(self) -> None:
        self._set(self._fd, 0, self._on, None)

    def stop(self) -> None:
        self._set(self._fd, 0, self._off, None)

    def wait(self) -> None:
        os.read(self._fd, 8)

    def close(self) -> None:
        os.close(self._fd)


class _ThreadAlarm:
    """Where there is no ``timerfd``: the waiter is woken by every start."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._set = threading.Event()

    def start(self) -> None:
        self._set.set()

    def stop(self) -> None:
        self._set.clear()

    def wait(self) -> None:
        self._set.wait()
        time.sleep(self.seconds)

    def close(self) -> None:
        self._set.clear()


def make_alarm(seconds: float) -> Alarm:
    """The best kind that this system has."""
    return _KernelAlarm(seconds) if sys.platform == "linux" else _ThreadAlarm(seconds)
