"""From a text to hashed ids of each token: the word, its neighbours, its beginnings and endings, the way it is written, and whether a
dictionary knows it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scenarium.core.text import Tokens, feature_buckets, hash_words, join_hashes, neighbours, normal, shape, shift

KINDS = 14
"""Ids of one token."""


def ids(tokens: Tokens, marks: Sequence[str], size: int) -> np.ndarray:
    """``int32 [tokens, KINDS]`` in 0 … ``size`` - 1; 0 stands for none. A text without a token gives one row of zeros.

    Beginnings and endings of words stand for what is unseen: *-itis*, *-oma*, *hyper-*. A Han character has none; there the
    pairs and the triple around it do that work. ``marks`` are the dictionary's tags of the tokens (``O``: unknown).
    """
    if not tokens.words:
        return np.zeros((1, KINDS), np.int32)
    words = [normal(word) for word in tokens.words]
    one, form = hash_words(words), hash_words([shape(word) for word in tokens.words])
    before, after = neighbours(one)
    known = hash_words(list(marks))
    parts = [_parts(words, length) for length in (2, 3, 4)]
    kinds = (
        one,
        hash_words(tokens.words),
        form,
        join_hashes(before, one),
        join_hashes(one, after),
        join_hashes(before, one, after),
        known,
        join_hashes(shift(known, -1), known, shift(known, 1)),
        *(part for pair in parts for part in pair),
    )
    return feature_buckets(kinds, size)


def _parts(words: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the first and of the last ``length`` letters; 0 for shorter words."""
    enough = np.array([len(word) > length for word in words], np.uint64)
    return hash_words([word[:length] for word in words]) * enough, hash_words([word[-length:] for word in words]) * enough
