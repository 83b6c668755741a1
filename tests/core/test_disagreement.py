"""How far two answers are apart."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scenarium.core.disagreement import distance, found
from scenarium.core.types import Disagreement

DISEASE = {"start": 0, "end": 3, "label": "DISEASE", "score": 0.9}
DRUG = {"start": 5, "end": 8, "label": "DRUG", "score": 0.8}
SQUARE = [0, 0, 10, 10]


@pytest.mark.parametrize(
    ("metric", "pointer", "production", "candidate", "expected"),
    [
        ("label", "/label", {"label": "fraud", "p": 0.9}, {"label": "fraud", "p": 0.5}, 0.0),
        ("label", "/label", {"label": "fraud"}, {"label": "normal"}, 1.0),
        ("label", "/label", {"label": "fraud"}, {}, 1.0),
        ("number", "/p", {"p": 0.9}, {"p": 0.6}, 0.3),
        ("number", "/p", {"p": 200.0}, {"p": 150.0}, 0.25),
        ("number", "/p", {"p": 5}, {"p": -50}, 1.0),
        ("number", "/p", {"p": float("nan")}, {"p": 1.0}, 1.0),
        ("boxes", "/boxes", {"boxes": []}, {"boxes": []}, 0.0),
        ("boxes", "/boxes", {"boxes": [{"box": SQUARE, "score": 0.9}]}, {"boxes": [{"box": SQUARE, "score": 0.7}]}, 0.0),
        ("boxes", "", [SQUARE], [[5, 0, 15, 10]], 2 / 3),
        ("boxes", "", [SQUARE, [20, 20, 30, 30]], [[20, 20, 30, 30]], 0.5),
        ("boxes", "", [SQUARE], [], 1.0),
        ("boxes", "", [SQUARE], ["no box"], 1.0),
        ("spans", "/e", {"e": [DISEASE, DRUG]}, {"e": [{**DISEASE, "score": 0.1}]}, 1 / 3),
        ("spans", "/e", {"e": [DISEASE]}, {"e": [{**DISEASE, "label": "DRUG"}]}, 1.0),
        ("tokens", "/text", {"text": "The cat sat"}, {"text": "the cat ran"}, 1 / 3),
        ("tokens", "/text", {"text": "今天天气好"}, {"text": "今天天气坏"}, 0.2),
        ("quantiles", "/q", {"q": {"0.1": [0, 0], "0.9": [2, 2]}}, {"q": {"0.1": [1, 1], "0.9": [3, 3]}}, 0.5),
        ("quantiles", "/q", {"q": {"0.1": [0, 0], "0.9": [2, 2]}}, {"q": {"0.1": [0], "0.9": [2]}}, 1.0),
        ("answer", "", {"a": "x", "p": 0.5, "deep": [1, 2]}, {"a": "y", "p": 0.5, "deep": [1, 2]}, 0.25),
        ("answer", "", {"a": "x"}, {"a": "x", "b": "y"}, 0.5),
    ],
)
def test_the_distance(metric: Any, pointer: str, production: Any, candidate: Any, expected: float) -> None:
    a, b = (json.dumps(value).encode() for value in (production, candidate))
    assert distance(Disagreement(metric, pointer), a, b) == pytest.approx(expected)
    if metric != "quantiles":  # in units of production's own width
        assert distance(Disagreement(metric, pointer), b, a) == pytest.approx(expected)
    assert distance(Disagreement(metric, pointer), a, a) == pytest.approx(0 if "NaN" not in str(a) else 1)


def test_what_is_no_json_is_compared_by_its_bytes() -> None:
    assert distance(Disagreement(), b"\x89PNG", b"\x89PNG") == 0.0
    assert distance(Disagreement("label", "/label"), b"{}", b"{") == 1.0
    assert distance(Disagreement(), b"[" * 100_000, b"1") == 1.0


def test_a_pointer_finds_as_rfc_6901_has_it() -> None:
    value = {"a/b": [{"~": 1}], "": 2}
    assert [found(value, pointer) for pointer in ("", "/a~1b/0/~0", "/", "/a~1b/7", "/x", "/a~1b/0/~0/deeper")] == [value, 1, 2, None, None, None]
