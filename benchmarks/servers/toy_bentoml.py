"""The toy model behind BentoML with its adaptive batching: ``python -m bentoml serve toy_bentoml:Toy --port PORT``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import bentoml
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from toy_model import LABELS, forward, weights


@bentoml.service(workers=1, traffic={"timeout": 30, "max_concurrency": 1000}, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Toy:
    def __init__(self) -> None:
        self.layers = weights()

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=1000)
    def predict(self, features: list[list[float]]) -> list[dict[str, Any]]:
        output = forward(self.layers, np.asarray(features, dtype=np.float32))
        best = output.argmax(axis=1)
        return [{"label": LABELS[index], "score": float(row[index])} for index, row in zip(best, output, strict=True)]
