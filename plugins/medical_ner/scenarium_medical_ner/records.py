"""Default data."""

from __future__ import annotations

from collections.abc import Sequence

from scenarium.core.types import Source


def sources() -> Sequence[Source]:
    """None yet."""
    return ()
