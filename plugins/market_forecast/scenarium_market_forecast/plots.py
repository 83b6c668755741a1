"""The figures of the training report: fans of held-out forecasts, calibration, and loss by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scenarium.core import Figure, Row, charts
from scenarium_market_forecast import series


def figures(levels: Sequence[float], rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Three fans spread over the held-out time, the observed share below each level, and the loss at each step beside the simple forecasts."""
    prices, future = series.stack(rows)
    forecast = np.array([[answer["quantiles"][str(level)] for level in levels] for answer in answers]).transpose(0, 2, 1)
    found = []
    for index in np.linspace(0, len(rows) - 1, 3).astype(int):
        row = rows[index]
        fan = {level: forecast[index, :, n].tolist() for n, level in enumerate(levels)}
        name = f"{row['series'] or 'series'}, {str(row['time']).removesuffix(' 00:00:00')}"
        found.append(Figure(f"Forecast / 预测: {name}", charts.forecast_fan(row["prices"][-40:], fan, row["future"])))
    below = {f"{level:g}": float((future <= forecast[..., n]).mean()) for n, level in enumerate(levels)}
    calibration = [(float(level), share) for level, share in below.items()]
    ideal = [(float(level), float(level)) for level in below]
    lines = {"ideal / 理想": ideal, "observed / 实际": calibration}
    found.append(Figure("Calibration / 校准", charts.lines(lines, x="level / 分位水平", y="share below / 低于它的比例")))
    truth = series.future_returns(prices, future)
    ours = np.log(forecast) - np.log(prices[:, -1])[:, None, None]
    by_step = {}
    for name, quantiles in {"model": ours, **series.simple_forecasts(prices, future.shape[1], levels)}.items():
        losses = [100 * float(series.pinball(quantiles[:, h : h + 1], levels, truth[:, h : h + 1]).mean()) for h in range(future.shape[1])]
        by_step[name] = list(enumerate(losses, 1))
    steps = {name: [(float(step), loss) for step, loss in losses] for name, losses in by_step.items()}
    found.append(Figure("Loss by step / 各步损失", charts.lines(steps, x="step / 步", y="pinball loss / 分位损失, %")))
    return found
