"""Fault: encode changes the row that every epoch sees again."""

from __future__ import annotations

import healthy
from healthy import *


@hookimpl
def encode(processor: Mapping[str, Any], item: Row, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
    item["text"] = item["text"].upper()
    return healthy.encode(processor, item, rng)
