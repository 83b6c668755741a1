"""What a scenario may be called."""

from __future__ import annotations

import keyword
import re

from scenarium.core.errors import ScenariumError

LONGEST = 40


def check(name: str) -> None:
    """Raise unless ``name`` can be a scenario: it stands in URLs, module names and environment variables.

    Raises:
        ScenariumError: SCN-7601, with a name that could.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name) or len(name) > LONGEST:
        raise ScenariumError("SCN-7601", name=name, suggestion=suggestion(name))


def suggestion(name: str) -> str:
    """The nearest name that can be one."""
    snake = re.sub(r"[^a-z0-9]+", "_", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()).strip("_")[:LONGEST].strip("_")
    return snake if re.match(r"[a-z]", snake) and not keyword.iskeyword(snake) else f"my_{snake}".strip("_")[:LONGEST]
