"""Fault: training leaves a file in the current folder."""

from __future__ import annotations

import healthy
from healthy import *


@hookimpl
def encode(processor: Mapping[str, Any], item: Row, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
    Path("last-text.txt").write_text(item["text"], encoding="utf8")
    return healthy.encode(processor, item, rng)
