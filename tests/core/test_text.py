"""Tokens keep their places in any text, and hashes are the same everywhere."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scenarium.core.text import buckets, feature_buckets, hash_word, hash_words, join_hashes, neighbours, normal, shape, shift, tokenize


@given(st.text())
def test_tokens_stand_where_they_say_and_leave_out_white_space_alone(text: str) -> None:
    tokens = tokenize(text)
    assert tokens.spans.shape == (len(tokens.words), 2)
    assert [text[start:end] for start, end in tokens.spans] == tokens.words
    assert "".join(tokens.words) == "".join(text.split())
    assert (np.diff(tokens.spans.reshape(-1)) >= 0).all()


def test_words_numbers_characters_and_signs() -> None:
    assert tokenize("转账500元 now!").words == ["转", "账", "500", "元", "now", "!"]
    assert tokenize("ＡＢＣ１２かな café naïve_x").words == ["ＡＢＣ", "１２", "か", "な", "café", "naïve", "_", "x"]
    assert tokenize("𠮷👍🏽 3.5mg").words == ["𠮷", "👍", "🏽", "3", ".", "5", "mg"]
    assert tokenize(" \r\n\u3000").words == []
    assert tokenize("a b c d", limit=2).words == ["a", "b"]


def test_forms_of_a_word() -> None:
    assert normal("ＦＲＥＥ") == normal("free") == "free"
    assert [shape(word) for word in ("Free", "FREE", "free", "500", "12345", "汉", "!")] == ["Xx", "X", "x", "ddd", "dddd", "汉", "!"]


def test_hashes_are_the_same_in_every_process() -> None:
    script = "from scenarium.core.text import *; print(hash_word('诈骗'), *buckets(join_hashes(hash_words(['a', 'b']), hash_words(['c', ''])), 1000))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    own = (hash_word("诈骗"), *buckets(join_hashes(hash_words(["a", "b"]), hash_words(["c", ""])), 1000))
    assert run.stdout.split() == [str(value) for value in own]


def test_an_n_gram_over_the_edge_is_none() -> None:
    words = hash_words(["a", "b", "c"])
    pairs = buckets(join_hashes(words, shift(words, 1)), 1 << 16)
    assert pairs[2] == 0
    assert len({*pairs[:2].tolist(), 0}) == 3
    assert (join_hashes(words, shift(words, 1))[0] != join_hashes(shift(words, 1), words)[0]).all()  # order counts
    assert shift(words, -1).tolist() == [0, words[0], words[1]]
    assert shift(words, 0).tolist() == words.tolist()


def test_buckets_are_even() -> None:
    spread = np.bincount(buckets(hash_words([f"word{number}" for number in range(20_000)]), 101), minlength=101)
    assert spread[0] == 0  # stands for none
    assert spread[1:].min() > 120
    assert spread[1:].max() < 290


def test_both_ends_of_a_text_are_neighbours() -> None:
    words = hash_words(["a", "b"])
    before, after = neighbours(words)
    assert before.tolist() == [1, words[0]]
    assert after.tolist() == [words[1], 1]


def test_kinds_of_features_have_buckets_of_their_own() -> None:
    words = hash_words(["a", "b"])
    found = feature_buckets([words, words, np.zeros_like(words)], 1 << 16)
    assert found.dtype == np.int32
    assert found.shape == (2, 3)
    assert (found[:, 0] != found[:, 1]).all()
    assert found[:, 2].tolist() == [0, 0]  # none stays none
