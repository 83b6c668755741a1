"""Accelerators: which is used, and what goes wrong there, told from an exception's class and words, since core imports no torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from scenarium.core.traces import print_fault

DEVICE_LOST = 71
"""Exit status of a worker that can use its device no more (``EX_OSERR`` of sysexits.h)."""
_CLASSES = ("torch", "torch.cuda", "onnxruntime.capi.onnxruntime_pybind11_state")
_LOST = (
    "CUDA error",
    "device-side assert",
    "unspecified launch failure",
    "illegal memory access",
    "misaligned address",
    "illegal instruction",
    "launch timed out",
    "uncorrectable ECC error",
)
"""After an error of a kernel every later call in the process fails; see cudaError in NVIDIA's CUDA Runtime API. A driver's own "CUDA error" that
is none of these is as little worth trying again in the same process."""

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


class DeviceMemory(NamedTuple):
    """Memory of an accelerator in bytes, as a process that uses it sees it."""

    device: str
    held: int
    """What this process has reserved for tensors."""
    free: int
    """What nobody uses."""
    total: int


def memory_of(model: Any) -> DeviceMemory | None:
    """What a loaded model says of its device by its own ``device_memory``, where it has one; None on the processor."""
    report = getattr(model, "device_memory", None)
    try:
        found: DeviceMemory | None = report() if report else None
    except Exception as fault:
        leave_if_lost(fault)
        return None
    return found


def cores() -> int:
    """Cores that this process may use: its affinity and its cgroup's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_MAX.read_text().split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        pass
    return count


def share(workers: int) -> int:
    """Threads of each of so many workers that are busy at once."""
    return max(1, cores() // max(1, workers))


def choose(wanted: str) -> str:
    """``auto`` is the first GPU where torch sees one, else the processor. Never imports torch."""
    if wanted != "auto":
        return wanted
    torch = sys.modules.get("torch")
    return "cuda:0" if torch and torch.cuda.is_available() else "cpu"


def out_of_memory(fault: BaseException) -> bool:
    """Whether the device had no room for this batch: ``torch.OutOfMemoryError``, or a runtime that says so in its words. A smaller one may do."""
    return type(fault).__name__ == "OutOfMemoryError" or ("out of memory" in str(fault) and _of_a_device(fault))


def lost(fault: BaseException | None) -> bool:
    """Whether the process can use its device no more: this fault, or the one that caused it."""
    while fault is not None:
        if _of_a_device(fault) and not out_of_memory(fault) and any(words in str(fault) for words in _LOST):
            return True
        fault = fault.__cause__
    return False


def leave_if_lost(fault: BaseException) -> None:
    """End a worker that can use its device no more; the gateway runs its batch again in a fresh one, as after any death."""
    if lost(fault):
        print_fault(fault.__cause__ or fault)
        print("The device is lost to this worker.", file=sys.stderr, flush=True)  # noqa: T201 -- the log of a worker is its stderr
        os._exit(DEVICE_LOST)


def give_back() -> None:
    """Let torch's allocator give back what it holds and does not use."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _of_a_device(fault: BaseException) -> bool:
    """Plain Python code that raises a ``ValueError`` with such words in it means something else."""
    return type(fault) is RuntimeError or type(fault).__module__ in _CLASSES
