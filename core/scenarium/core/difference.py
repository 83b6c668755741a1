"""Comparing two outputs of unknown shape: numbers within a tolerance, everything else exactly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel


def difference(a: Any, b: Any, tolerance: float = 0.0, where: str = "") -> str | None:
    """The first place in which ``a`` and ``b`` differ (``probability: 0.5 ≠ 0.7``), or None. It reads the same in every language.

    ``tolerance`` is relative to the larger magnitude, and absolute below 1.
    """
    a, b = _plain(a), _plain(b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if list(map(str, a)) != list(map(str, b)) and set(a) != set(b):
            return f"{where or 'keys'}: {sorted(map(str, a))} ≠ {sorted(map(str, b))}"
        return next((found for key in a if (found := difference(a[key], b[key], tolerance, f"{where}.{key}".lstrip(".")))), None)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return f"len({where or 'value'}): {len(a)} ≠ {len(b)}"
        pairs = enumerate(zip(a, b, strict=True))
        return next((found for index, (x, y) in pairs if (found := difference(x, y, tolerance, f"{where}[{index}]"))), None)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return _arrays(a, b, tolerance, where)
    if _number(a) and _number(b):
        near = math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) or (a != a and b != b)
        return None if near else f"{where or 'value'}: {a!r} ≠ {b!r}"
    return None if type(a) is type(b) and a == b else f"{where or 'value'}: {a!r:.80} ≠ {b!r:.80}"


def largest(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """The largest absolute and the largest relative error between arrays of the same names and shapes; relative to the larger magnitude, where that is above 1.

    So the second is what ``difference`` holds against a tolerance. NaN or infinity on one side alone is an infinite error.
    """
    absolute = relative = 0.0
    for name in a:
        x, y = np.asarray(a[name], np.float64), np.asarray(b[name], np.float64)
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        x, y = x[~same], y[~same]
        with np.errstate(invalid="ignore"):
            apart = np.nan_to_num(np.abs(x - y), nan=np.inf, posinf=np.inf)
            scaled = np.where(np.isinf(apart), np.inf, apart / np.maximum(1.0, np.maximum(np.abs(x), np.abs(y))))
        absolute, relative = max(absolute, float(apart.max(initial=0.0))), max(relative, float(scaled.max(initial=0.0)))
    return absolute, relative


def _arrays(a: np.ndarray, b: np.ndarray, tolerance: float, where: str) -> str | None:
    if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        return f"{where}: {a.dtype}{list(a.shape)} ≠ {b.dtype}{list(b.shape)}"
    apart = ~np.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True) if a.dtype.kind in "fc" else a != b
    if not apart.any():
        return None
    spot = tuple(int(i) for i in np.argwhere(apart)[0])
    return f"{where}{list(spot)}: {a[spot]!s} ≠ {b[spot]!s}"


def _plain(value: Any) -> Any:
    """pydantic models, dataclasses, tensors and tuples with names as plain containers and arrays."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(value, "detach"):
        return value.detach().float().cpu().numpy()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, list, tuple)):
        return list(value)
    return value


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
