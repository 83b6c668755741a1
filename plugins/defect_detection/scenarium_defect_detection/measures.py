"""The figures: of classes, of pixels, and what the baseline looks at."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from scenarium.core import images
from scenarium_defect_detection import maps


def pixel_counts(heat_map: str, mask: images.ImageValue | None) -> np.ndarray:
    """How often each level occurs on the defect (row 0) and beside it (row 1): ``[2, 256]``."""
    level = levels_of(heat_map)
    if mask is None:
        return np.stack([np.zeros(256, dtype=np.int64), np.bincount(level.ravel(), minlength=256)])
    marked = images.resize(images.read_mask(mask).astype(np.float32), *level.shape) >= 0.5
    return np.stack([np.bincount(level[marked], minlength=256), np.bincount(level[~marked], minlength=256)])


@lru_cache(maxsize=4096)  # ``promote`` scores the same answers again and again
def levels_of(heat_map: str) -> np.ndarray:
    """The levels in the heat map of an answer (base64)."""
    return maps.read_levels(base64.b64decode(heat_map))


def classified(true: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """Accuracy and macro F1 (the mean over the true labels)."""
    t, p = np.array(true), np.array(predicted)
    f1 = [2 * np.sum((t == label) & (p == label)) / (np.sum(t == label) + np.sum(p == label)) for label in np.unique(t)]
    return {"accuracy": float(np.mean(t == p)), "macro_f1": float(np.mean(f1))}


def histogram(image: images.ImageValue) -> np.ndarray:
    """Shares of 32 grey levels: ``[32]``."""
    grey = images.to_grey(images.read_image(image)) >> 3
    return np.bincount(grey.ravel(), minlength=32) / grey.size
