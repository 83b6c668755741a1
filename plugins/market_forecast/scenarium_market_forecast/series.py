"""Windows of a price series, the quantile score, and the simple forecasts that the model has to beat. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from scenarium.core import BadData, Row

EWMA_DECAY = 0.94
"""Decay of the daily volatility estimate of RiskMetrics (J.P. Morgan/Reuters, Technical Document, 4th ed., 1996)."""


class Window(NamedTuple):
    """What is known at one moment, and what came after it.

    ``prices``: the last ``context + 1`` prices, oldest first; ``covariates``: name to ``context`` values, the last belonging to
    the last price; ``future``: the next ``horizon`` prices.
    """

    series: str
    time: str
    prices: np.ndarray
    covariates: dict[str, np.ndarray]
    future: np.ndarray


def windows(rows: Sequence[Row], context: int, horizon: int, covariates: Sequence[str], stride: int = 1) -> list[Window]:
    """Cut every series of ``rows`` into windows, oldest first. No window crosses the border of a split, since it is cut from one.

    Raises:
        BadData: a price that is not positive, or two rows of one series at one time.
    """
    found = []
    ordered = sorted(rows, key=lambda row: (row.get("series") or "", row["time"]))
    for name, group in groupby(ordered, key=lambda row: row.get("series") or ""):
        points = list(group)
        _refuse_unusable(name, points)
        prices = np.array([point["value"] for point in points], dtype=np.float64)
        columns = {c: np.array([float(point[c]) for point in points], dtype=np.float64) for c in covariates}
        for now in range(context, len(points) - horizon, stride):
            seen = slice(now - context, now + 1)
            known = {c: column[now - context + 1 : now + 1] for c, column in columns.items()}
            found.append(Window(name, str(points[now]["time"]), prices[seen], known, prices[now + 1 : now + 1 + horizon]))
    return found


def _refuse_unusable(name: str, points: Sequence[Row]) -> None:
    for before, point in zip([None, *points[:-1]], points, strict=True):
        if point["value"] <= 0:
            value = point["value"]
            raise BadData("value", f"price {value} of series {name!r} is not positive", f"序列 {name!r} 的价格 {value} 不是正数", point)
        if before is not None and before["time"] == point["time"]:
            time = point["time"]
            raise BadData("time", f"series {name!r} has two rows at {time}", f"序列 {name!r} 在 {time} 有两行数据", point)


def refuse_look_ahead(rows: Sequence[Row], covariates: Sequence[str], limit: float = 0.3) -> None:
    """Refuse a covariate that knows tomorrow: one whose rank correlation with the next return no honest market signal has.

    Daily returns are close to unpredictable (a correlation of 0.05 would be a fortune), so above ``limit`` a column is taken to
    be shifted or computed from later prices. Both the column and its change are tried.

    Raises:
        BadData: naming the column and the correlation.
    """
    for column in covariates:
        levels, changes, nexts = [], [], []
        ordered = sorted(rows, key=lambda row: (row.get("series") or "", row["time"]))
        for _, group in groupby(ordered, key=lambda row: row.get("series") or ""):
            points = list(group)
            returns = np.diff(np.log([point["value"] for point in points]))
            values = np.array([float(point[column]) for point in points])
            levels.append(values[1:-1])
            changes.append(np.diff(values)[:-1])
            nexts.append(returns[1:])
        for kind, known in (("its level", levels), ("its change", changes)):
            found = _rank_correlation(np.concatenate(known), np.concatenate(nexts))
            if abs(found) > limit:
                raise BadData(
                    column,
                    f"column {column!r} looks into the future: {kind} has a rank correlation of {found:.2f} with the next return (limit {limit})",
                    f"列 {column!r} 含有未来信息：它与下一期收益率的秩相关系数为 {found:.2f}（上限 {limit}）",
                )


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where one side is constant or too short to say."""
    if len(a) < 30 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    ranks = np.stack([np.argsort(np.argsort(values)).astype(float) for values in (a, b)])
    return float(np.corrcoef(ranks)[0, 1])


def pinball(quantiles: np.ndarray, levels: Sequence[float], truth: np.ndarray) -> np.ndarray:
    """Mean quantile loss of each window (Koenker and Bassett, 1978).

    ``quantiles``: [N, H, Q], ``truth``: [N, H], both log returns from the last price. Returns [N].
    """
    error = truth[..., None] - quantiles
    level = np.asarray(levels)
    loss: np.ndarray = np.maximum(level * error, (level - 1) * error).mean(axis=(1, 2))
    return loss


def future_returns(prices: np.ndarray, future: np.ndarray) -> np.ndarray:
    """Cumulative log returns of [N, H] future prices from the last of [N, C + 1] known prices."""
    returns: np.ndarray = np.log(future) - np.log(prices[:, -1:])
    return returns


def simple_forecasts(prices: np.ndarray, horizon: int, levels: Sequence[float]) -> dict[str, np.ndarray]:
    """The named simple forecasts, each [N, H, Q] log returns, from [N, C + 1] prices alone.

    - ``naive``: random walk without drift, spread by the standard deviation of the window's returns
    - ``drift``: the same around the window's mean return
    - ``ewma``: random walk without drift, spread by RiskMetrics' exponentially weighted volatility
    """
    returns = np.diff(np.log(prices), axis=1)
    steps = np.arange(1, horizon + 1)
    z = np.array([NormalDist().inv_cdf(level) for level in levels])
    weights = EWMA_DECAY ** np.arange(returns.shape[1])[::-1]
    spread = {"naive": returns.std(axis=1), "ewma": np.sqrt((returns**2 * weights).sum(axis=1) / weights.sum())}
    shape = np.sqrt(steps)[:, None] * z
    walk = {name: sigma[:, None, None] * shape for name, sigma in spread.items()}
    return {**walk, "drift": walk["naive"] + returns.mean(axis=1)[:, None, None] * steps[:, None]}


def measure(quantiles: np.ndarray, levels: Sequence[float], prices: np.ndarray, future: np.ndarray) -> dict[str, float]:
    """All metrics of [N, H, Q] forecasts, in percent of the price where they have a unit.

    A skill is 1 - loss / loss of the simple forecast: above 0 the model is better, below 0 worse.
    """
    truth = future_returns(prices, future)
    loss = float(pinball(quantiles, levels, truth).mean())
    metrics = {"pinball_pct": 100 * loss}
    for name, forecast in simple_forecasts(prices, future.shape[1], levels).items():
        metrics[f"skill_vs_{name}"] = 1 - loss / float(pinball(forecast, levels, truth).mean())
    median = quantiles[..., len(levels) // 2]
    metrics["mae_pct"] = 100 * float(np.abs(truth - median).mean())
    inside = (truth >= quantiles[..., 0]) & (truth <= quantiles[..., -1])
    metrics[f"coverage_{round(100 * (levels[-1] - levels[0]))}"] = float(inside.mean())
    return metrics


def stack(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Prices [N, C + 1] and future prices [N, H] of evaluated windows."""
    return np.array([row["prices"] for row in rows]), np.array([row["future"] for row in rows])
