"""From tag logits to entities: windows joined, the best valid sequence of tags, spans of characters. NumPy alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

IMPOSSIBLE = -1e9


class Span(NamedTuple):
    """One entity over tokens: first, one after the last, label, and the mean probability of its tags."""

    first: int
    after: int
    label: str
    score: float


def tag_names(labels: Sequence[str]) -> list[str]:
    """``O``, then ``B-`` and ``I-`` of each label: IOB2 (L. Ramshaw and M. Marcus, 1995; E. Tjong Kim Sang and J. Veenstra, 1999)."""
    return ["O", *(f"{mark}-{label}" for label in labels for mark in "BI")]


def windows(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Start and end of the windows that cover ``length`` tokens; neighbours share ``overlap`` tokens, the last one ends with the text."""
    if length <= size:
        return [(0, length)]
    starts = [*range(0, length - size, size - overlap), length - size]
    return [(start, start + size) for start in starts]


def run_windows(texts: Sequence[np.ndarray], size: int, overlap: int, most: int, forward: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """Logits ``[tokens, tags]`` of each text, computed window by window.

    Where two windows overlap, each token takes its logits from the one in which it stands further from the edge.

    Args:
        texts: ids ``[tokens, kinds]`` of each text.
        size: tokens of one window.
        overlap: tokens that neighbouring windows share.
        most: windows of one forward.
        forward: ids ``[rows, tokens, kinds]`` to logits ``[rows, tokens, tags]``.
    """
    parts = [(text, start, end) for text, ids in enumerate(texts) for start, end in windows(len(ids), size, overlap)]
    parts.sort(key=lambda part: part[2] - part[1])
    joined: list[np.ndarray | None] = [None] * len(texts)
    for at in range(0, len(parts), most):
        group = parts[at : at + most]
        batch = np.zeros((len(group), max(end - start for _, start, end in group), texts[0].shape[1]), texts[0].dtype)
        for row, (text, start, end) in enumerate(group):
            batch[row, : end - start] = texts[text][start:end]
        logits = forward(batch)
        for row, (text, start, end) in enumerate(group):
            whole = joined[text]
            if whole is None:
                whole = joined[text] = np.zeros((len(texts[text]), logits.shape[-1]), np.float32)
            first = start + overlap // 2 if start else 0
            after = end - (overlap - overlap // 2) if end < len(whole) else end
            # The last window may overlap by more than the others: what it does not own was filled by its neighbour, or will be.
            whole[first:after] = logits[row, first - start : after - start]
    return [logits for logits in joined if logits is not None]


def best_tags(logits: np.ndarray, tags: Sequence[str]) -> np.ndarray:
    """The most probable sequence of tags in which an ``I-x`` follows only ``B-x`` or ``I-x`` (A. Viterbi, 1967): ``int [tokens]``."""
    scores = np.asarray(logits, np.float64)
    allowed = np.zeros((len(tags), len(tags)))
    for to, name in enumerate(tags):
        if name.startswith("I-"):
            allowed[[tag[2:] != name[2:] for tag in tags], to] = IMPOSSIBLE
    best = scores[0] + [IMPOSSIBLE if name.startswith("I-") else 0.0 for name in tags]
    back = np.zeros(scores.shape, np.int64)
    for token in range(1, len(scores)):
        paths = best[:, None] + allowed
        back[token] = paths.argmax(0)
        best = paths[back[token], np.arange(len(tags))] + scores[token]
    found = np.zeros(len(scores), np.int64)
    found[-1] = best.argmax()
    for token in range(len(scores) - 1, 0, -1):
        found[token - 1] = back[token, found[token]]
    return found


def spans(logits: np.ndarray, tags: Sequence[str]) -> list[Span]:
    """The entities of one text."""
    chosen = best_tags(logits, tags)
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    sure = (shifted / shifted.sum(-1, keepdims=True))[np.arange(len(chosen)), chosen]
    found: list[Span] = []
    for token, tag in enumerate(chosen):
        name = tags[tag]
        if name.startswith("B-"):
            found.append(Span(token, token + 1, name[2:], float(sure[token])))
        elif name.startswith("I-"):
            found[-1] = found[-1]._replace(after=token + 1)
    return [span._replace(score=float(sure[span.first : span.after].mean())) for span in found]
