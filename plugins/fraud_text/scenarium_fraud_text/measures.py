"""Figures of a classifier: pure NumPy, so that ``promote`` can compute them on many resamples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def macro_f1(true: np.ndarray, predicted: np.ndarray) -> float:
    """Unweighted mean of the F1 of each label that occurs in ``true`` or ``predicted``."""
    scores = []
    for label in np.union1d(true, predicted):
        hit = np.sum((true == label) & (predicted == label))
        scores.append(2 * hit / (np.sum(true == label) + np.sum(predicted == label)))
    return float(np.mean(scores)) if scores else 0.0


def precision_recall(true: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Precision and recall of boolean answers; 0 where nothing was found or nothing was to be found."""
    hit = float(np.sum(true & predicted))
    return hit / max(float(predicted.sum()), 1.0), hit / max(float(true.sum()), 1.0)


def roc_auc(true: np.ndarray, scores: np.ndarray) -> float | None:
    """Area under the ROC curve by mid-ranks (Mann-Whitney U); None where one class is missing."""
    positive, negative = int(true.sum()), int((~true).sum())
    if not positive or not negative:
        return None
    _, where, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[where]
    return float((ranks[true].sum() - positive * (positive + 1) / 2) / (positive * negative))


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error over equal bins of the confidence (C. Guo et al., ICML 2017)."""
    at = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(float(right[at == b].mean() - confidence[at == b].mean())) * float(np.mean(at == b)) for b in range(bins) if np.any(at == b)]
    return float(sum(gaps))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, float64."""
    shifted = np.exp((logits - logits.max(-1, keepdims=True)).astype(np.float64))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def best_scale(logits: np.ndarray, labels: Sequence[int] | np.ndarray) -> tuple[float, float]:
    """The factor of the logits, 0.5 … 32, with the least negative log-likelihood, and that in nats a row (C. Guo et al., ICML 2017).

    Another label than a row's own counts as one row in ``rows + 2`` would, so that a few rows that are all right do not make the
    factor endless (J. Platt, "Probabilistic Outputs for Support Vector Machines", 1999).

    Args:
        logits: ``[rows, labels]`` of rows that were not trained on.
        labels: index of each row's own label.
    """
    count, kinds = logits.shape
    doubt = 1 / (count + 2)
    target = np.full(logits.shape, doubt / max(kinds - 1, 1))
    target[np.arange(count), labels] = 1 - doubt
    scales = np.geomspace(0.5, 32, 73)
    losses = [-(target * np.log(np.maximum(softmax(scale * logits), 1e-12))).sum() / count for scale in scales]
    best = int(np.argmin(losses))
    return float(scales[best]), float(losses[best])
