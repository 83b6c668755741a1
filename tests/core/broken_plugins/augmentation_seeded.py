"""Fault: augmentation draws from the global generator, so that a resumed training sees other data."""

from __future__ import annotations

import healthy
from healthy import *


@hookimpl
def encode(processor: Mapping[str, Any], item: Row, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
    arrays = dict(healthy.encode(processor, item, None))
    if rng is not None:
        arrays["letters"] = np.where(np.random.random(len(arrays["letters"])) < 0.5, 1, arrays["letters"])
    return arrays
