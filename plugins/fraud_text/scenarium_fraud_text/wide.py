"""The wide part, a linear support vector machine, and its sum with the trained deep part.

The machine is convex, so it is solved and not trained by steps; the two parts learn apart, since a deep part that has learnt the
training rows by heart leaves a wide part beside it nothing to learn. One scale of their sum, fitted on the validation rows, makes
the probabilities honest.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scenarium_fraud_text.measures import best_scale

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from scenarium_fraud_text.network import Evidence

STRENGTHS = (1.0, 0.3, 3.0)
"""Costs of an error of the support vector machine that are tried; the first one is taken where there are too few rows to choose by."""
ENOUGH = 30
"""Validation rows from which on a choice by them is better than none."""
SCALE = 5.0
"""Scale of the sum where there are fewer."""
DEEP = 1 / 16
"""What the deep part's logits are multiplied with beside the machine's, which are about 1.

A constant: fitted on the validation rows it came out anywhere from 0 to 1/4, by how near those happened to be to the training rows
(measured on parts of the training rows of four data sets: with the constant the macro F1 is higher on three, on the fourth it
depends on the seed; the log-likelihood is better on two, and within 0.004 nats on the others).
"""


class Part(NamedTuple):
    """A linear model of hashed n-grams."""

    weights: np.ndarray
    """``float64 [labels, buckets]``."""
    bias: np.ndarray
    """``float64 [labels]``."""

    def logits(self, texts: csr_matrix) -> np.ndarray:
        """``float64 [rows, labels]``."""
        return np.asarray(texts @ self.weights.T + self.bias)


def join(module: Evidence, train: Sequence[Any], val: Sequence[Any], labels: Sequence[str], importance: Sequence[float], seed: int) -> float:
    """Fill in the wide part of ``module``, whose deep part is trained, and scale both.

    Args:
        module: in evaluation mode; changed in place.
        train: training items, ``ids`` and ``label``.
        val: validation items whose labels are among ``labels``.
        importance: of the rows of each label.

    Returns:
        The scale.
    """
    from sklearn.feature_extraction.text import TfidfTransformer

    size, weighed = module.wide.num_embeddings, dict(enumerate(importance))
    rarity = TfidfTransformer(sublinear_tf=True)
    strength, scale = STRENGTHS[0], SCALE
    if len(val) >= ENOUGH:
        texts, target = rarity.fit_transform(counts(train, size)), targets(train, labels)
        held_out, deep = rarity.transform(counts(val, size)), DEEP * module.answers(val)
        parts = [machine(texts, target, weighed, strength, seed) for strength in STRENGTHS]
        found = [best_scale(part.logits(held_out) + deep, targets(val, labels)) for part in parts]
        best = min(range(len(found)), key=lambda at: found[at][1])
        strength, scale = STRENGTHS[best], found[best][0]
    # All is chosen, so the validation rows may teach too: a tenth more of the user's labels.
    both = [*train, *val]
    part = machine(rarity.fit_transform(counts(both, size)), targets(both, labels), weighed, strength, seed)
    module.join(part.weights, part.bias, rarity.idf_, scale, scale * DEEP)
    return scale


def targets(items: Sequence[Any], labels: Sequence[str]) -> np.ndarray:
    """Index of each item's label."""
    return np.array([labels.index(item["label"]) for item in items])


def counts(items: Sequence[Any], size: int) -> csr_matrix:
    """How often each n-gram stands in each text: ``float64 [items, size]``."""
    from scipy.sparse import csr_matrix

    found = [np.unique(item["ids"][item["ids"] > 0], return_counts=True) for item in items]
    ends = np.cumsum([0, *(len(ids) for ids, _ in found)])
    values, places = (np.concatenate([pair[at] for pair in found]) for at in (1, 0))
    return csr_matrix((values.astype(np.float64), places, ends), shape=(len(items), size))


def machine(texts: csr_matrix, target: np.ndarray, importance: dict[int, float], strength: float, seed: int) -> Part:
    """One support vector machine a label against the others; two labels share one, each with half of its answer."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    with warnings.catch_warnings():
        # Nearly solved is as good here: the rest is noise.
        warnings.simplefilter("ignore", ConvergenceWarning)
        solved = LinearSVC(C=strength, class_weight=importance, random_state=seed).fit(texts, target)
    weights, bias = solved.coef_, solved.intercept_
    return Part(weights, bias) if len(importance) > 2 else Part(np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2)
