"""Log lines: one JSON object (or one line of text) each, on stderr."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

Level = Literal["info", "warning", "error"]

_format = "json"


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
