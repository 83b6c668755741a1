"""Market forecast: quantiles of a price series for several steps ahead."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field as Setting
from pydantic import field_validator, model_validator

from scenarium.core import (
    BadInput,
    BadValue,
    Baseline,
    DataConfig,
    Disagreement,
    Evaluation,
    Field,
    Figure,
    Metric,
    ModelConfig,
    Request,
    Response,
    Row,
    Runtime,
    ScenarioConfig,
    Schema,
    Signature,
    Source,
    TensorSpec,
    TrainConfig,
    Traits,
    hookimpl,
)
from scenarium.core.sources import PackageFile
from scenarium_market_forecast import series

if TYPE_CHECKING:
    import torch


class ForecastData(DataConfig):
    """The latest rows are held out; a random split would let the model see the future."""

    split: str = "time:time"
    """`time:COLUMN` only."""

    @field_validator("split")
    @classmethod
    def _in_time(cls, value: str) -> str:
        if not value.startswith("time:"):
            raise BadValue(
                "a forecast is measured on the latest rows only: use time:COLUMN (a random split leaks the future)",
                "预测只在最新的行上评估：请使用 time:列名（随机划分会泄露未来）",
            )
        return value


class ForecastModel(ModelConfig):
    """Shape of the forecast and of the network."""

    context: int = Setting(64, ge=63)
    """Steps of the past that the model sees."""
    horizon: int = Setting(10, ge=1)
    """Steps ahead."""
    quantiles: list[float] = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95]
    """Quantile levels, ascending, an odd number with 0.5 in the middle."""
    covariates: list[str] = []
    """Further columns, known at the time of each row (volume, an index). Each is tested for look-ahead."""
    hidden: int = Setting(32, gt=0)
    """Width of the network."""
    dropout: float = Setting(0.2, ge=0, lt=1)
    """Dropout of the network."""

    @model_validator(mode="after")
    def _levels(self) -> ForecastModel:
        levels = self.quantiles
        if sorted(set(levels)) != levels or len(levels) % 2 == 0 or levels[len(levels) // 2] != 0.5 or not 0 < levels[0] < levels[-1] < 1:
            raise BadValue(
                "quantiles must ascend between 0 and 1, an odd number of them, with 0.5 in the middle", "分位数应在 0 与 1 之间递增，个数为奇数，且正中为 0.5"
            )
        return self


class ForecastConfig(ScenarioConfig):
    """Settings of the scenario."""

    data: ForecastData = ForecastData()
    model: ForecastModel = ForecastModel()
    train: TrainConfig = TrainConfig(epochs=8, batch_size=128, lr=2e-3, weight_decay=0.05, patience=3)


LONGEST = 100_000
"""Most prices of a request: 400 years of trading days; the model reads the last of them alone."""


class ForecastRequest(Request):
    """The recent past of one series."""

    prices: list[float] = Setting(min_length=2, max_length=LONGEST)
    """Prices, oldest first, one a step (a trading day); all positive."""
    covariates: dict[str, Annotated[list[float], Setting(max_length=LONGEST)]] = Setting({}, max_length=100)
    """For a model trained with covariates: name to values, as many as prices."""


class ForecastResponse(Response):
    """The forecast, step 1 to the horizon."""

    median: list[float]
    """The middle of the forecast, a price for each step."""
    quantiles: dict[str, list[float]]
    """Level to a price for each step: half of the outcomes are expected between 0.25 and 0.75."""


def read_stocks(paths: list[Path]) -> list[Row]:
    """Adjusted closes of five US stocks, 2000-03-01 to 2013-03-01 (splits and dividends are taken out)."""
    with gzip.open(paths[0], "rt", encoding="utf8", newline="") as file:
        return [{"series": row["Ticker"], "time": row["Date"], "value": float(row["Adj Close"]), "_line": n} for n, row in enumerate(csv.DictReader(file), 2)]


STOCKS = Source(
    name="bokeh-stocks",
    origin="real",
    licence="public domain (per the package's datasets.json); carrier BSD-3-Clause",
    files=(
        PackageFile(
            "bokeh-sampledata",
            "2026.1",
            "bokeh_sampledata/_data/stocks.csv.gz",
            "5abadf99b2d394f920120a27de6f0df129859d71d4cfb0bf661bcc99446ab1fd",
            "public domain",
        ),
    ),
    read=read_stocks,
    doc="12,154 daily adjusted closes of AAPL, FB, GOOG, IBM and MSFT",
)


@hookimpl
def config() -> type[ScenarioConfig]:
    return ForecastConfig


@hookimpl
def fields(config: ForecastConfig) -> Mapping[str, Field]:
    base = {
        "time": Field("time", "when the price was known"),
        "value": Field("number", "the price, positive; adjusted for splits"),
        "series": Field("label", "name of the series, where the file has several", required=False),
    }
    return base | {name: Field("number", "covariate known at that time") for name in config.model.covariates}


@hookimpl
def sources() -> Sequence[Source]:
    return [STOCKS]


@hookimpl
def schema() -> Schema:
    return Schema(ForecastRequest, ForecastResponse)


@hookimpl
def sample(config: ForecastConfig) -> ForecastRequest:
    count = config.model.context + 1
    prices = [round(100 * math.exp(0.01 * math.sin(step / 3) + 0.0005 * step), 2) for step in range(count)]
    return ForecastRequest(prices=prices, covariates={name: [math.cos(step) for step in range(count)] for name in config.model.covariates})


@hookimpl
def fit(config: ForecastConfig, rows: Sequence[Row]) -> Mapping[str, Any]:
    names = config.model.covariates
    series.refuse_look_ahead(rows, names)
    values = {name: np.array([float(row[name]) for row in rows]) for name in names}
    return {"mean": {n: float(v.mean()) for n, v in values.items()}, "scale": {n: float(v.std() or 1.0) for n, v in values.items()}}


@hookimpl
def items(config: ForecastConfig, rows: Sequence[Row]) -> Sequence[series.Window]:
    return series.windows(rows, config.model.context, config.model.horizon, config.model.covariates)


def inputs(config: ForecastConfig, state: Mapping[str, Any], prices: np.ndarray, covariates: Mapping[str, np.ndarray]) -> np.ndarray:
    """float32 [context, 1 + covariates]: log returns, then each covariate standardised by the training rows."""
    columns = [np.diff(np.log(prices))]
    columns += [(covariates[name] - state["mean"][name]) / state["scale"][name] for name in config.model.covariates]
    return np.stack(columns, 1).astype(np.float32)


@hookimpl
def encode(config: ForecastConfig, processor: Mapping[str, Any], item: series.Window) -> Mapping[str, np.ndarray]:
    future = np.log(item.future) - np.log(item.prices[-1])
    return {"returns": inputs(config, processor, item.prices, item.covariates), "future": future.astype(np.float32)}


@hookimpl
def signature(config: ForecastConfig) -> Signature:
    shape = config.model
    returns = TensorSpec("returns", "float32", (shape.context, 1 + len(shape.covariates)))
    return Signature((returns,), (TensorSpec("quantiles", "float32", (shape.horizon, len(shape.quantiles))),))


@hookimpl
def model(config: ForecastConfig) -> torch.nn.Module:
    from scenarium_market_forecast.network import QuantileForecaster

    shape = config.model
    return QuantileForecaster(shape.horizon, shape.quantiles, 1 + len(shape.covariates), shape.hidden, shape.dropout, series.EWMA_DECAY)


@hookimpl
def loss(config: ForecastConfig, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    from scenarium_market_forecast.network import pinball_loss

    return pinball_loss(model(returns=batch["returns"]), config.model.quantiles, batch["future"]), len(batch["future"])


@hookimpl
def metric() -> Metric:
    return Metric("pinball_pct", higher_is_better=False)


def _as_row(window: series.Window) -> Row:
    # A request carries one covariate value a price; the first belongs to the oldest price and is not used.
    covariates = {name: [values[0], *values.tolist()] for name, values in window.covariates.items()}
    return {"series": window.series, "time": window.time, "prices": window.prices.tolist(), "covariates": covariates, "future": window.future.tolist()}


@hookimpl
def evaluate(config: ForecastConfig, runtime: Runtime, rows: Sequence[Row]) -> Evaluation:
    """Every held-out window is a request; the row that it is compared with holds its past and its future."""
    found = items(config, rows)
    held_out = [_as_row(window) for window in found]
    answers = []
    for start in range(0, len(held_out), 512):
        requests = [ForecastRequest(prices=row["prices"], covariates=row["covariates"]) for row in held_out[start : start + 512]]
        for answer in runtime.predict(requests):
            if isinstance(answer, Exception):
                raise answer
            answers.append(answer.model_dump(mode="json"))
    return Evaluation(dict(score(config, held_out, answers)), held_out, answers)


@hookimpl
def score(config: ForecastConfig, rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    prices, future = series.stack(rows)
    levels = config.model.quantiles
    forecast = np.array([[answer["quantiles"][str(level)] for level in levels] for answer in answers]).transpose(0, 2, 1)
    return series.measure(np.log(forecast) - np.log(prices[:, -1])[:, None, None], levels, prices, future)


NAMES = {
    "naive": "random walk, volatility of the last 64 steps",
    "drift": "random walk with drift",
    "ewma": "random walk, RiskMetrics EWMA volatility",
}


@hookimpl
def baseline(config: ForecastConfig, test: Sequence[Row]) -> Baseline:
    """The best of the simple forecasts on these very rows: a harder opponent than any that is chosen beforehand."""
    found = items(config, test)
    prices, future = np.array([w.prices for w in found]), np.array([w.future for w in found])
    forecasts = series.simple_forecasts(prices, config.model.horizon, config.model.quantiles)
    measured = {name: series.measure(forecast, config.model.quantiles, prices, future) for name, forecast in forecasts.items()}
    best = min(measured, key=lambda name: measured[name]["pinball_pct"])
    return Baseline(NAMES[best].replace("64", str(config.model.context)), measured[best])


@hookimpl
def report(config: ForecastConfig, rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Sequence[Figure]:
    from scenarium_market_forecast.plots import figures

    return figures(config.model.quantiles, rows, answers)


@hookimpl
def traits() -> Traits:
    return Traits(max_batch_size=256, disagreement=Disagreement("quantiles", "/quantiles"))


@hookimpl
def preprocess(config: ForecastConfig, processor: Mapping[str, Any], request: ForecastRequest) -> Mapping[str, np.ndarray]:
    need = config.model.context + 1
    prices = np.array(request.prices, dtype=np.float64)
    if len(prices) < need:
        raise BadInput("prices", f"has {len(prices)} values, the model needs at least {need}", f"只有 {len(prices)} 个值，模型至少需要 {need} 个")
    if not (np.isfinite(prices).all() and (prices > 0).all()):
        raise BadInput("prices", "must hold positive, finite numbers", "必须全部为有限的正数")
    if np.ptp(np.log(prices[-need:])) > 20:
        raise BadInput("prices", "span more than eight powers of ten within the window", "在窗口内跨越了八个以上的数量级")
    known = {}
    for name in config.model.covariates:
        values = request.covariates.get(name)
        if values is None or len(values) != len(prices) or not np.isfinite(values).all():
            raise BadInput(f"covariates.{name}", f"must hold {len(prices)} finite numbers, one a price", f"必须有 {len(prices)} 个有限的数，与价格一一对应")
        known[name] = np.array(values[-config.model.context :], dtype=np.float64)
    return {"returns": inputs(config, processor, prices[-need:], known)}


@hookimpl
def postprocess(config: ForecastConfig, request: ForecastRequest, output: Mapping[str, np.ndarray]) -> ForecastResponse:
    prices = request.prices[-1] * np.exp(output["quantiles"].astype(np.float64))
    levels = {str(level): prices[:, index].tolist() for index, level in enumerate(config.model.quantiles)}
    return ForecastResponse(median=levels["0.5"], quantiles=levels)
