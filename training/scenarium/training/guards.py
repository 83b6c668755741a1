"""What surrounds a training: its threads, its signals, and errors that a person can act on."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from scenarium.core.config import TrainConfig
from scenarium.core.errors import ScenariumError


class Stoppable(Protocol):
    """What a signal may stop."""

    told: bool


@contextmanager
def threads(settings: TrainConfig) -> Iterator[None]:
    """The threads of one process: the setting, else ``OMP_NUM_THREADS``, else the cores of this process dealt among ``nproc``."""
    before = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if settings.threads or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(settings.threads or max(1, cores // settings.nproc))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def interrupts(trainer: Stoppable) -> Iterator[None]:
    """SIGTERM and Ctrl-C stop the trainer after the current step; the same signal again acts as it always did."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def told(number: int, frame: Any) -> None:
        trainer.told = True
        restore()

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, told)
    try:
        yield
    finally:
        restore()


@contextmanager
def memory(settings: TrainConfig) -> Iterator[None]:
    """Out of memory, on a GPU or not, as an error that names the settings which help."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as fault:
        raise _out_of_memory(settings, fault) from fault
    except RuntimeError as fault:
        # PyTorch's CPU allocator has no exception class of its own.
        if "can't allocate memory" in str(fault) or "not enough memory" in str(fault):
            raise _out_of_memory(settings, fault) from fault
        raise


def _out_of_memory(settings: TrainConfig, fault: BaseException) -> ScenariumError:
    size = settings.batch_size
    reason = str(fault).partition("\n")[0]
    return ScenariumError("SCN-3003", batch_size=size, smaller=max(1, size // 2), accumulate=settings.accumulate * (2 if size > 1 else 1), reason=reason)


def finite(loss: float, step: int, rate: float) -> None:
    """Refuse a loss that is not a number.

    Raises:
        ScenariumError: SCN-3002.
    """
    if not math.isfinite(loss):
        raise ScenariumError("SCN-3002", step=step, rate=f"{rate:.3g}", lower=f"{rate / 10:.1g}", loss=loss)
