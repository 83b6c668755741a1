"""Tracebacks as a plugin's author wants to read them."""

from __future__ import annotations

import os
import site
import sysconfig
import traceback
from pathlib import Path

AUTHOR = "SCENARIUM_AUTHOR_TRACES"
"""Set (``scenarium dev`` does) where a traceback is read by the plugin's author, not by an operator."""

_CORE = Path(__file__).resolve().parent
_OTHERS = (
    *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *site.getsitepackages(),
    str(_CORE),
    str(_CORE.parent.parent.parent / "training"),
    str(_CORE.parent.parent.parent / "gateway"),
)


def author_frames(fault: BaseException) -> list[traceback.FrameSummary]:
    """The frames that belong neither to Scenarium nor to Python nor to an installed package."""
    return [frame for frame in traceback.extract_tb(fault.__traceback__) if not frame.filename.startswith(("<", *_OTHERS))]


def author_trace(fault: BaseException) -> str:
    """The fault and the author's own frames, the innermost last; the whole traceback where there are none."""
    last = "".join(traceback.format_exception_only(fault)).rstrip()
    own = author_frames(fault)
    if isinstance(fault, SyntaxError):
        return last
    if not own:
        return "".join(traceback.format_exception(fault)).rstrip()
    return "".join(traceback.format_list(own)) + last


def print_fault(fault: BaseException) -> None:
    """Write a fault's traceback to stderr: all of it, or the author's part where ``SCENARIUM_AUTHOR_TRACES`` is set."""
    import sys

    text = author_trace(fault) if os.environ.get(AUTHOR) else "".join(traceback.format_exception(fault)).rstrip()
    print(text, file=sys.stderr, flush=True)  # noqa: T201 -- the log of a worker is its stderr
