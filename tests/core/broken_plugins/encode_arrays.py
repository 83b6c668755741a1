"""Fault: encode gives another dtype than the signature says."""

from __future__ import annotations

import healthy
from healthy import *


@hookimpl
def encode(processor: Mapping[str, Any], item: Row, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
    arrays = healthy.encode(processor, item, rng)
    return {**arrays, "letters": arrays["letters"].astype(np.int32)}
