"""Tokens of Chinese and English text with exact offsets, and hashed n-grams of them.

A Han character, kana or other sign is a token of its own; letters of other scripts form words, digits form numbers. Nothing is
downloaded and nothing is learned, so one tokenizer serves every language of a scenario, and a token always knows its place.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_HAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[^\W\d_{_HAN}]+|\d+|[^\s]")
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: Fibonacci hashing, Knuth, TAOCP 3, 6.4


class Tokens(NamedTuple):
    """The tokens of one text."""

    words: list[str]
    """Each token as it is written."""
    spans: np.ndarray
    """``int64 [tokens, 2]``: start and end, code-point offsets into the text, end exclusive."""


def tokenize(text: str, limit: int | None = None) -> Tokens:
    """Split ``text`` into at most ``limit`` tokens: words, numbers, single Han characters, single signs. White space is dropped.

    >>> tokenize("转账500元 now!").words
    ['转', '账', '500', '元', 'now', '!']
    """
    words: list[str] = []
    spans: list[tuple[int, int]] = []
    for match in _TOKEN.finditer(text):
        if len(words) == limit:
            break
        words.append(match[0])
        spans.append(match.span())
    return Tokens(words, np.array(spans, np.int64).reshape(-1, 2))


@lru_cache(maxsize=1 << 16)
def normal(word: str) -> str:
    """The word in NFKC form and lower case: full-width ``Ａ`` and ``a`` are one."""
    return unicodedata.normalize("NFKC", word).lower()


@lru_cache(maxsize=1 << 16)
def shape(word: str) -> str:
    """How a word is written, at most four signs: ``Xx`` for *Free*, ``X`` for *FREE*, ``ddd`` for *500*, ``汉`` for Han characters.

    The number of digits is kept up to four; every other run counts once.
    """
    kinds = "".join("d" if c.isdigit() else "汉" if c >= "\u3040" and c.isalpha() else "X" if c.isupper() else "x" if c.isalpha() else c for c in word[:24])
    return re.sub(r"([Xx汉])\1+", r"\1", kinds)[:4]


@lru_cache(maxsize=1 << 16)
def hash_word(word: str) -> int:
    """A 32-bit hash that is the same in every process and on every machine."""
    return zlib.crc32(word.encode("utf8", "surrogatepass"))


def hash_words(words: list[str]) -> np.ndarray:
    """``uint64 [words]``, never 0: 0 stands for no word."""
    return np.array([hash_word(word) + 1 for word in words], np.uint64)


def join_hashes(*parts: np.ndarray) -> np.ndarray:
    """One hash of the parts in order, ``uint64``; 0 wherever one of them is 0, so an n-gram over the text's end is none."""
    with np.errstate(over="ignore"):
        joined = parts[0] * _MIX
        for part in parts[1:]:
            joined = ((joined ^ (joined >> np.uint64(29))) + part) * _MIX
    return np.where(np.logical_and.reduce([part != 0 for part in parts]), joined | np.uint64(1), np.uint64(0))


def buckets(hashes: np.ndarray, size: int) -> np.ndarray:
    """``int32`` in 1 … ``size`` - 1, and 0 where the hash is 0."""
    with np.errstate(over="ignore"):
        mixed = (hashes * _MIX) >> np.uint64(24)
    return np.where(hashes == 0, 0, 1 + mixed % np.uint64(size - 1)).astype(np.int32)


def shift(hashes: np.ndarray, by: int) -> np.ndarray:
    """The hash ``by`` places further on (``by`` > 0: the next tokens), 0 beyond the ends."""
    moved = np.zeros_like(hashes)
    if by > 0:
        moved[:-by] = hashes[by:]
    elif by < 0:
        moved[-by:] = hashes[:by]
    else:
        moved[:] = hashes
    return moved


def neighbours(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of the token before and of the token after each; both ends of the text count as a word, so "begins with" is a feature too."""
    before, after = shift(hashes, -1), shift(hashes, 1)
    before[0] = after[-1] = np.uint64(1)
    return before, after


def feature_buckets(kinds: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Kinds of features, each the hashes of all tokens, as ``int32 [tokens, kinds]``; the same hash of two kinds has two buckets."""
    return buckets(np.stack([join_hashes(np.full_like(hashes, kind + 1), hashes) for kind, hashes in enumerate(kinds)], 1), size)
