"""Log lines: one JSON object (or one line of text) each, on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any, Literal

Level = Literal["info", "warning", "error"]

EVERY_S = 1.0

_format = "json"
_many: dict[str, tuple[float, int]] = {}
"""By key when its last line was written, and how many were left out since."""


def set_format(name: Literal["json", "text", "author"]) -> None:
    """Choose the form of all lines. ``author`` (``scenarium dev``): what a plugin writes, as it is, and of all else the URL and the errors."""
    global _format
    _format = name


def event(level: Level, what: str, **values: Any) -> None:
    """Write one line. ``what`` is a stable word; values are JSON."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    if _format == "json":
        line = json.dumps({"at": now, "level": level, "event": what, **values}, ensure_ascii=False, default=str)
    elif _format == "author":
        if what != "worker_output" and what != "listening" and level != "error":
            return
        line = str(values.get("line", values.get("url", values.get("title", what))))
    else:
        line = " ".join([now[11:23], level, what, *(f"{key}={value}" for key, value in values.items())])
    try:
        # One write a line, so that lines of several processes on one stream do not mix.
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # a closed terminal or a full disk must not end a request


def many(level: Level, what: str, key: str, **values: Any) -> None:
    """Write a line of what happens thousands of times a second once it is too much (a refusal): one each ``EVERY_S`` of the same ``key``,
    a word of a closed set. ``unlogged`` is the number of those that were left out before it."""
    now = time.monotonic()
    last, left = _many.get(key, (-EVERY_S, 0))
    if now - last < EVERY_S:
        _many[key] = last, left + 1
        return
    _many[key] = now, 0
    event(level, what, **values, **({"unlogged": left} if left else {}))


class _Handler(logging.Handler):
    """What libraries log, as lines of the same form."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            event("error", "log", logger=record.name, message=record.getMessage(), traceback=logging.Formatter().formatException(record.exc_info))
        else:
            event("error" if record.levelno >= logging.ERROR else "warning", "log", logger=record.name, message=record.getMessage())


def capture() -> None:
    """Send the warnings and errors of all libraries through ``event``."""
    root = logging.getLogger()
    root.handlers[:] = [_Handler()]
    root.setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # else each malformed request of a stranger is a line
