"""From the evidence of each token to the words and phrases that weighed most."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scenarium.core.text import Tokens

LONGEST = 12
"""Most tokens of one phrase."""


class Phrase(NamedTuple):
    """A stretch of the text and its weight in nats."""

    start: int
    end: int
    weight: float


def token_weights(evidence: np.ndarray, probabilities: np.ndarray, label: int) -> np.ndarray:
    """What each token adds to the log-odds of ``label``, in nats: ``float64 [tokens]``.

    With two labels the sum over the tokens and the bias is the log-odds itself. With more, the other labels count as they are
    probable: the derivative of the log-odds along the token's evidence.
    """
    others = np.delete(probabilities, label)
    against = np.delete(evidence, label, axis=1) @ (others / max(others.sum(), 1e-12))
    weights: np.ndarray = evidence[:, label] - against
    return weights


def phrases(tokens: Tokens, weights: np.ndarray, most: int) -> list[Phrase]:
    """At most ``most`` stretches that spoke for the label, the heaviest first; neighbouring tokens that all did so are joined."""
    if not len(weights):
        return []
    found: list[Phrase] = []
    # A token that adds next to nothing ends a phrase, else a whole sentence would be one.
    enough = max(float(weights.max()) * 0.1, 0.0)
    first = None
    for at in range(len(weights) + 1):
        counts = at < len(weights) and weights[at] > enough
        if first is not None and (not counts or at - first == LONGEST):
            found.append(Phrase(int(tokens.spans[first, 0]), int(tokens.spans[at - 1, 1]), float(weights[first:at].sum())))
            first = None
        if counts and first is None:
            first = at
    return sorted(found, key=lambda phrase: -phrase.weight)[:most]
