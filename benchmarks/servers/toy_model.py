"""The toy model of the serving benchmarks: 64 numbers → 256 → 2, in NumPy, the same for every server."""

from __future__ import annotations

import numpy as np

LABELS = ("calm", "alarm")


def weights() -> tuple[np.ndarray, np.ndarray]:
    """Both layers, float32: [64, 256] and [256, 2]."""
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.1, (64, 256)).astype(np.float32), rng.normal(0, 0.1, (256, 2)).astype(np.float32)


def forward(layers: tuple[np.ndarray, np.ndarray], features: np.ndarray) -> np.ndarray:
    """Probabilities [n, 2] of features [n, 64]."""
    hidden = np.maximum(features @ layers[0], 0)
    logits = hidden @ layers[1]
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))
