"""From a text to hashed n-gram ids, one row of ids a token."""

from __future__ import annotations

import numpy as np

from scenarium.core.text import Tokens, buckets, hash_words, join_hashes, normal, shape, shift

KINDS = 8
"""Ids of one token: the word, its pairs with both neighbours, the triple around it, four and five in a row, its way of
writing with the neighbours', and the first and last letters of a word."""


def ids(tokens: Tokens, size: int) -> np.ndarray:
    """``int32 [tokens, KINDS]`` in 0 … ``size`` - 1; 0 stands for none. A text without a token gives one row of zeros.

    Every n-gram is centred on its token, so the weight it gets in the model belongs to the place where it stands.
    """
    if not tokens.words:
        return np.zeros((1, KINDS), np.int32)
    words = [normal(word) for word in tokens.words]
    one, form = hash_words(words), hash_words([shape(word) for word in tokens.words])
    long = np.array([len(word) > 1 for word in words], np.uint64)
    # Both ends of the text count as a word, so that "begins with" is a feature too.
    before, after = shift(one, -1), shift(one, 1)
    before[0] = after[-1] = np.uint64(1)
    kinds = (
        one,
        join_hashes(before, one),
        join_hashes(one, after),
        join_hashes(before, one, after),
        join_hashes(shift(one, -2), before, one, after),
        join_hashes(shift(form, -1), form, shift(form, 1)),
        hash_words([word[:4] for word in words]) * long,
        hash_words([word[-3:] for word in words]) * long,
    )
    salted = [join_hashes(np.full_like(column, kind + 1), column) for kind, column in enumerate(kinds)]
    return np.stack([buckets(column, size) for column in salted], 1)
