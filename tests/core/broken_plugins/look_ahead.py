"""Fault: the label leaks into the inputs."""

from __future__ import annotations

import healthy
from healthy import *


@hookimpl
def encode(processor: Mapping[str, Any], item: Row, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
    return healthy.encode(processor, {**item, "text": f"{item['label']} {item['text']}"}, rng)
