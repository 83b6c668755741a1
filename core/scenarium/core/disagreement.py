"""How far the answers of two versions to one request are apart, by the measure that the scenario names (``Traits.disagreement``).

Each measure is a distance from 0 (they agree) to 1, needs nothing but the JSON answers, and never raises: what has not the form that
the measure wants counts as equal or as 1.

- ``label``: 1 where the values differ (a label flip), else 0.
- ``number``: ``|a - b| / max(1, |a|, |b|)``: absolute for probabilities, relative for large numbers.
- ``boxes``: 1 - the mean intersection over union of the boxes, matched greedily; a box without a partner counts 0. A box is
  ``[x1, y1, x2, y2]``, or an object that holds one as ``box``.
- ``spans``: 1 - F1 of the (``start``, ``end``, ``label``) triples, all three equal (as CoNLL-2003 counts entities).
- ``tokens``: 1 - F1 of the bags of words (Rajpurkar et al. 2016, SQuAD); a Chinese character is a word.
- ``quantiles``: of a mapping from quantile to a series: the mean absolute difference, in units of production's mean width between its
  outermost quantiles. It is the Wasserstein-1 distance of the two forecasts on the quantiles that they name.
- ``answer``: the mean over all values of the answer: text as ``label``, numbers as ``number``, what only one of them has as 1.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from scenarium.core.types import Disagreement

_WORD = re.compile(r"[㐀-䶿一-鿿豈-﫿]|[^\W㐀-䶿一-鿿豈-﫿]+")


def distance(measure: Disagreement, production: bytes, candidate: bytes) -> float:
    """How far two answers (JSON bytes) are apart, 0 to 1."""
    try:
        a, b = found(json.loads(production), measure.pointer), found(json.loads(candidate), measure.pointer)
    except (ValueError, RecursionError):
        return float(production != candidate)
    return between(measure, a, b)


def between(measure: Disagreement, a: Any, b: Any) -> float:
    """How far two values are apart, 0 to 1."""
    if a == b:
        return 0.0
    try:
        value = _MEASURES[measure.metric](a, b)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError, RecursionError):
        return 1.0
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 1.0


def found(value: Any, pointer: str) -> Any:
    """What a JSON pointer (RFC 6901) names; None where there is nothing."""
    for part in pointer.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (TypeError, ValueError, KeyError, IndexError):
            return None
    return value


def _number(a: float, b: float) -> float:
    return abs(a - b) / max(1.0, abs(a), abs(b))


def _label(a: Any, b: Any) -> float:
    return float(a != b)


def _f1(a: Counter[Any], b: Counter[Any]) -> float:
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 1.0


def _tokens(a: str, b: str) -> float:
    return 1.0 - _f1(*(Counter(_WORD.findall(text.lower())) for text in (a, b)))


def _spans(a: list[Mapping[str, Any]], b: list[Mapping[str, Any]]) -> float:
    return 1.0 - _f1(*(Counter((span["start"], span["end"], span["label"]) for span in spans) for spans in (a, b)))


def _boxes(a: list[Any], b: list[Any]) -> float:
    first, second = ([list(map(float, box["box"] if isinstance(box, Mapping) else box)) for box in boxes] for boxes in (a, b))
    pairs = sorted(((_overlap(one, other), i, j) for i, one in enumerate(first) for j, other in enumerate(second)), reverse=True)
    left, right, total = set(range(len(first))), set(range(len(second))), 0.0
    for value, i, j in pairs:
        if i in left and j in right:
            left.discard(i)
            right.discard(j)
            total += value
    return 1.0 - total / max(len(first), len(second), 1)


def _overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / either if either > 0 else float(a == b)


def _quantiles(a: Mapping[str, list[float]], b: Mapping[str, list[float]]) -> float:
    if a.keys() != b.keys() or any(len(series) != len(b[name]) for name, series in a.items()):
        return 1.0
    gaps = [abs(x - y) for name, series in a.items() for x, y in zip(series, b[name], strict=True)]
    low, high = min(a, key=float), max(a, key=float)
    width = sum(abs(x - y) for x, y in zip(a[high], a[low], strict=True)) / len(a[low])
    return sum(gaps) / len(gaps) / width if width else 1.0


def _answer(a: Any, b: Any) -> float:
    parts = list(_leaves(a, b))
    return sum(parts) / len(parts) if parts else 0.0


def _leaves(a: Any, b: Any) -> Iterator[float]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in a.keys() | b.keys():
            yield from _leaves(a[name], b[name]) if name in a and name in b else (1.0,)
    elif isinstance(a, list) and isinstance(b, list):
        for one, other in zip(a, b, strict=False):
            yield from _leaves(one, other)
        yield from [1.0] * abs(len(a) - len(b))
    elif all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b)):
        yield min(1.0, _number(a, b))
    else:
        yield _label(a, b)


_MEASURES: dict[str, Callable[[Any, Any], float]] = {
    "answer": _answer,
    "label": _label,
    "number": _number,
    "boxes": _boxes,
    "spans": _spans,
    "tokens": _tokens,
    "quantiles": _quantiles,
}
