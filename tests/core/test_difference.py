"""Where two outputs differ: numbers within a tolerance, everything else exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from scenarium.core.difference import difference, largest


class Answer(BaseModel):
    label: str
    probability: float


@dataclass
class Point:
    x: float


@pytest.mark.parametrize(
    ("a", "b", "tolerance"),
    [
        (Answer(label="fraud", probability=0.5), Answer(label="fraud", probability=0.5004), 1e-3),
        ({"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}, 0.0),
        (1000.0, 1000.5, 1e-3),  # relative above 1
        (math.nan, math.nan, 0.0),
        (np.array([1.0, math.nan]), np.array([1.0005, math.nan]), 1e-3),
        ((1, "x"), [1, "x"], 0.0),
        (np.float32(0.5), 0.5, 0.0),
    ],
)
def test_what_is_equal(a: Any, b: Any, tolerance: float) -> None:
    assert difference(a, b, tolerance) is None


@pytest.mark.parametrize(
    ("a", "b", "where"),
    [
        (Answer(label="fraud", probability=0.5), Answer(label="fraud", probability=0.7), "probability: 0.5 ≠ 0.7"),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, "a.b[1]: 2 ≠ 3"),
        ({"a": 1}, {"b": 1}, "keys: ['a'] ≠ ['b']"),
        ([1, 2], [1], "len(value): 2 ≠ 1"),
        (np.zeros((2, 2)), np.array([[0.0, 0.0], [0.5, 0.0]]), "[1, 0]: 0.0 ≠ 0.5"),
        (np.zeros(2), np.zeros(3), ": float64[2] ≠ float64[3]"),
        (np.array(["a"]), np.array(["b"]), "[0]: a ≠ b"),
        (Point(1.0), Point(2.0), "x: 1.0 ≠ 2.0"),
        (True, 1, "value: True ≠ 1"),
        ("a", None, "value: 'a' ≠ None"),
    ],
)
def test_the_first_place_that_differs_is_named(a: Any, b: Any, where: str) -> None:
    assert difference(a, b, 1e-3) == where


def test_the_largest_errors() -> None:
    a = {"x": np.array([1.0, 100.0, np.nan]), "n": np.array([1, 2])}
    b = {"x": np.array([1.5, 101.0, np.nan]), "n": np.array([1, 2])}
    absolute, relative = largest(a, b)
    assert absolute == 1
    assert relative == pytest.approx(0.5 / 1.5)
    assert largest(a, a) == (0, 0)
    assert largest({"x": np.array([np.inf, 1.0])}, {"x": np.array([1.0, 1.0])}) == (np.inf, np.inf)
    assert largest({"x": np.array([np.nan])}, {"x": np.array([1.0])}) == (np.inf, np.inf)
