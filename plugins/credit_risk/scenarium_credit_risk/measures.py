"""How well a score ranks and how well it is calibrated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import ks_2samp, rankdata

from scenarium.core import Row


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive ranks above a negative, ties counted half (Mann and Whitney 1947).

    ``labels`` bool [n], ``scores`` float [n]. 0.5 where one class is absent.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return 0.5
    above = rankdata(scores)[labels].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def roc(labels: np.ndarray, scores: np.ndarray) -> list[tuple[float, float]]:
    """Corners of the ROC curve: share of the negatives and of the positives that score at least a threshold, one point a distinct score."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]), 1))
    hits = np.cumsum(labels[order])[last]
    misses = last + 1 - hits
    return [(0.0, 0.0), *zip((misses / max(misses[-1], 1)).tolist(), (hits / max(hits[-1], 1)).tolist(), strict=True)]


def all_of(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """``auc``; ``ks``, the largest distance between the classes' distributions; ``brier``, the mean squared error of the probability."""
    both = bool(labels.any() and not labels.all())
    ks = float(ks_2samp(probabilities[labels], probabilities[~labels]).statistic) if both else 0.0
    return {"auc": auc(labels, probabilities), "ks": ks, "brier": float(np.mean((probabilities - labels) ** 2))}


def best_single(columns: Sequence[str], target: str, positive: str, train: Sequence[Row], test: Sequence[Row]) -> tuple[str, float]:
    """The column that ranks ``train`` best by itself, up or down, and its area on ``test``. Missing values take the median."""

    def ranking(column: str, rows: Sequence[Row], median: float) -> float:
        values = np.array([median if row.get(column) is None else row[column] for row in rows])
        return auc(np.array([row[target] == positive for row in rows]), values)

    best, best_train, best_test = "nothing", 0.5, 0.5
    for column in columns:
        known = [row[column] for row in train if row.get(column) is not None]
        median = float(np.median(known)) if known else 0.0
        area, held_out = ranking(column, train, median), ranking(column, test, median)
        if max(area, 1 - area) > best_train:
            best, best_train, best_test = column, max(area, 1 - area), held_out if area >= 0.5 else 1 - held_out
    return best, best_test
