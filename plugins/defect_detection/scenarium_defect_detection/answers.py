"""The answers: from the network's output to a verdict, boxes and a heat map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scenarium.core import Base64, Response
from scenarium_defect_detection import maps


class Box(Response):
    """A rectangle around one suspicious place."""

    box: list[int]
    """x1, y1, x2, y2 in pixels of the upright picture; x2 and y2 are exclusive."""
    score: float
    """Highest score inside."""


class Answer(Response):
    """Whether the part is defective, how far from the threshold, and where."""

    is_defect: bool
    score: float
    """Anomaly score (`classify`: the probability of any defect). Comparable within one version only."""
    threshold: float
    """Scores above it are defects."""
    boxes: list[Box]
    """Places above the threshold, the strongest first; empty for a good part."""
    heat_map: Base64 | None
    """PNG with a palette, black over red to white and clear where the score is low, in the picture's aspect; index 128 is the threshold."""
    defect: str | None = None
    """Most probable class (`classify` only)."""
    probabilities: dict[str, float] | None = None
    """Every class (`classify` only)."""


def scored(processor: Mapping[str, Any], output: Mapping[str, np.ndarray], size: tuple[int, int], heat_map: bool) -> Answer:
    """The answer of what learned from good parts, to a picture of ``size`` (height, width) pixels."""
    threshold: float = processor["threshold"]
    scores, score = output["map"].astype(np.float64), float(output["score"])
    if processor["method"] == "simulate":
        # Log odds become probabilities here, outside of the network: training needs the log odds.
        scores, score, threshold = sigmoid(scores), float(sigmoid(np.array(score))), float(sigmoid(np.array(threshold)))
    found = maps.boxes(scores, threshold, *size)
    png = maps.heat_png(maps.levels(scores, threshold, *size)) if heat_map else None
    boxes = [Box(box=box, score=value) for box, value in found]
    return Answer(is_defect=score > threshold, score=score, threshold=threshold, boxes=boxes, heat_map=png)


def named(processor: Mapping[str, Any], output: Mapping[str, np.ndarray], size: tuple[int, int], heat_map: bool) -> Answer:
    """The answer of the classifier, to a picture of ``size`` (height, width) pixels."""
    labels, good = processor["labels"], processor["good"]
    logits = output["logits"].astype(np.float64)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    probabilities = {label: float(share) for label, share in zip(labels, shares, strict=True)}
    best = int(shares.argmax())
    # Where the evidence for the class lies; without good parts among the classes, against the mean of the others.
    other = labels.index(good) if good in labels and labels[best] != good else None
    evidence = output["evidence"].astype(np.float64)
    apart = evidence[best] - (evidence[other] if other is not None else np.delete(evidence, best, 0).mean(0) if len(labels) > 1 else 0)
    scores = sigmoid(apart)
    score = 1 - probabilities.get(good, 0.0)
    is_defect = labels[best] != good
    found = maps.boxes(scores, 0.5, *size) if is_defect else []
    # For a good part the evidence speaks for goodness: there is nothing to point at.
    png = maps.heat_png(maps.levels(scores if is_defect else np.zeros_like(scores), 0.5, *size)) if heat_map else None
    return Answer(
        is_defect=is_defect,
        score=score,
        threshold=0.5,
        boxes=[Box(box=box, score=value) for box, value in found],
        heat_map=png,
        defect=labels[best],
        probabilities=probabilities,
    )


def sigmoid(value: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-value)) without overflow."""
    return np.asarray(1 / (1 + np.exp(-np.clip(value, -60, 60))))
