"""Fault: letters are numbered by hash(), which differs from process to process."""

from __future__ import annotations

from healthy import *


def numbers(text: str) -> np.ndarray:
    return np.array([hash(word) % 97 + 1 for word in text.split()[:LONGEST]] or [1], dtype=np.int64)


@hookimpl
def encode(processor: Mapping[str, Any], item: Row) -> Mapping[str, np.ndarray]:
    return {"letters": numbers(item["text"]), "labels": np.array(processor["labels"].index(item["label"]), dtype=np.int64)}


@hookimpl
def preprocess(request: Ask) -> Mapping[str, np.ndarray]:
    return {"letters": numbers(request.text)}
