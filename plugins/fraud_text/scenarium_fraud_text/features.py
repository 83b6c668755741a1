"""From a text to hashed n-gram ids, one row of ids a token."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from scenarium.core.text import Tokens, buckets, feature_buckets, hash_word, hash_words, join_hashes, neighbours, normal, shape, shift

WORDS = 6
"""N-grams of tokens: the token itself, with either neighbour, with both, its way of writing, and that of all three."""
LETTERS = {3: 9, 1: 8, 2: 6}
"""N-grams of letters within a word and its edges, length to how many at most. Han characters have none. Single letters and
digits matter most in numbers: each number is new, but that there are many digits is not."""
DEEP = WORDS + LETTERS[3]
"""The first so many ids are also read by the deep part of the network."""
KINDS = WORDS + sum(LETTERS.values())


def ids(tokens: Tokens, size: int) -> np.ndarray:
    """``int32 [tokens, KINDS]`` in 0 … ``size`` - 1; 0 stands for none. A text without a token gives one row of zeros.

    Every n-gram stands at the token in its middle, so the weight that the model gives it belongs to that place.
    """
    if not tokens.words:
        return np.zeros((1, KINDS), np.int32)
    words = [normal(word) for word in tokens.words]
    one, form = hash_words(words), hash_words([shape(word) for word in tokens.words])
    before, after = neighbours(one)
    kinds = (
        one,
        join_hashes(before, one),
        join_hashes(one, after),
        join_hashes(before, one, after),
        form,
        join_hashes(shift(form, -1), form, shift(form, 1)),
    )
    return np.concatenate([feature_buckets(kinds, size), buckets(np.stack([_letters(word) for word in words]), size)], 1)


def shares(found: np.ndarray) -> np.ndarray:
    """``float32``, the shape of ``found``: 1 over how often the id occurs in the text, 0 for none.

    So an n-gram counts once however often it is repeated (measured: it matters more than anything else on long mails), and its
    weight is spread evenly over the places where it stands.
    """
    _, where, counts = np.unique(found, return_inverse=True, return_counts=True)
    return np.where(found > 0, 1 / counts[where].reshape(found.shape), 0).astype(np.float32)


@lru_cache(maxsize=1 << 15)
def _letters(word: str) -> np.ndarray:
    """``uint64``, one a slot of ``LETTERS``: hashes of the word's n-grams of letters, 0 where there are fewer."""
    found: list[int] = []
    for length, most in LETTERS.items():
        written = word if length == 1 else f" {word} "
        grams = [written[at : at + length] for at in range(len(written) - length + 1)][:most] if len(word) > 1 else []
        found += [hash_word(gram) + (length << 33) for gram in grams] + [0] * (most - len(grams))
    return np.array(found, np.uint64)
