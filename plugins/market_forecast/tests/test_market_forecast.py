"""market_forecast: the conformance kit, and what is special to forecasts: no look-ahead, ordered quantiles, honest skill."""

from __future__ import annotations

import itertools
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scenarium_market_forecast as plugin
from scenarium.core import BadData, BadInput, Row, ScenariumError
from scenarium.core.config import Settings
from scenarium.core.handle import Handle
from scenarium.core.kit.pytest_plugin import ScenarioConformance
from scenarium.core.registry import Registry
from scenarium_market_forecast import series

DAY = datetime(2020, 1, 1, tzinfo=UTC)


class TestMarketForecast(ScenarioConformance):
    name = "market_forecast"


def generated_rows(count: int = 900, seed: int = 0, name: str = "A") -> list[Row]:
    """A generated price series with clustering volatility (GARCH(1, 1))."""
    rng = np.random.default_rng(seed)
    variance, price, rows = 1e-4, 100.0, []
    for step in range(count):
        move = math.sqrt(variance) * rng.standard_normal()
        variance = 2e-6 + 0.1 * move**2 + 0.88 * variance
        price *= math.exp(move)
        rows.append({"series": name, "time": DAY + timedelta(days=step), "value": price})
    return rows


def covariate_config(*names: str) -> plugin.ForecastConfig:
    return plugin.ForecastConfig(model=plugin.ForecastModel(covariates=list(names)))


def test_a_column_that_knows_tomorrow_is_refused() -> None:
    rows = generated_rows()
    for row, after in itertools.pairwise(rows):
        row["signal"] = math.log(after["value"] / row["value"]) + 0.002 * math.sin(row["value"])
    rows[-1]["signal"] = 0.0
    with pytest.raises(BadData, match="looks into the future"):
        plugin.fit(covariate_config("signal"), rows)


def test_a_shifted_price_column_is_refused() -> None:
    rows = generated_rows()
    for row, after in itertools.pairwise(rows):
        row["index"] = after["value"]
    rows[-1]["index"] = rows[-1]["value"]
    with pytest.raises(BadData, match="'index'"):
        plugin.fit(covariate_config("index"), rows)


def test_an_honest_covariate_is_accepted() -> None:
    rows = generated_rows()
    rng = np.random.default_rng(1)
    for row in rows:
        row["volume"] = float(rng.lognormal())
    state = plugin.fit(covariate_config("volume"), rows)
    assert state["scale"]["volume"] > 0


@pytest.mark.parametrize("split", ["random", "group:series"])
def test_only_a_split_in_time_is_allowed(split: str) -> None:
    settings = Settings.read(environ={}, sets=[f"data.split={split}"], scenario="market_forecast")
    with pytest.raises(ScenariumError, match="time:COLUMN"):
        _ = Registry(settings).scenario("market_forecast").config


def test_the_future_does_not_reach_the_input() -> None:
    config, rows = plugin.ForecastConfig(), generated_rows(200)
    before = plugin.items(config, rows)
    for row in rows[150:]:
        row["value"] *= 3
    after = plugin.items(config, rows)
    early = 150 - config.model.context - 1
    state = plugin.fit(config, rows)
    for old, new in zip(before[:early], after[:early], strict=True):
        np.testing.assert_array_equal(plugin.encode(config, state, old)["returns"], plugin.encode(config, state, new)["returns"])


def test_windows_stay_within_their_series() -> None:
    rows = generated_rows(120, name="A") + generated_rows(120, seed=1, name="B")
    found = series.windows(rows, 64, 10, ())
    assert len(found) == 2 * (120 - 64 - 10)
    values = {name: {row["value"] for row in rows if row["series"] == name} for name in "AB"}
    assert all(set(w.prices) | set(w.future) <= values[w.series] for w in found)


@pytest.mark.parametrize(("field", "value", "words"), [("value", -1.0, "not positive"), ("time", DAY, "two rows")])
def test_unusable_rows_are_named(field: str, value: Any, words: str) -> None:
    rows = generated_rows(120)
    rows[1] |= {field: value, "_file": "prices.csv", "_line": 3}
    with pytest.raises(BadData, match=words) as caught:
        series.windows(rows, 64, 10, ())
    assert (caught.value.file, caught.value.line) == ("prices.csv", 3)


def test_the_score_of_the_right_quantiles_is_lowest() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((4000, 1))
    right = np.tile(np.array([-1.2816, 0.0, 1.2816]), (4000, 1, 1))
    levels = [0.1, 0.5, 0.9]
    best = series.pinball(right, levels, truth).mean()
    assert all(series.pinball(wrong, levels, truth).mean() > best for wrong in (right * 0.5, right * 2, right + 0.5))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Handle:
    """A model trained on a user's CSV of two generated series."""
    folder: Path = tmp_path_factory.mktemp("market")
    rows = generated_rows(700, name="A") + generated_rows(700, seed=5, name="B")
    lines = ["日期,代码,收盘价", *(f"{row['time']:%Y-%m-%d},{row['series']},{row['value']:.4f}" for row in rows)]
    (folder / "行情.csv").write_text("\n".join(lines), encoding="gb18030")
    sets = [f'data.path="{folder / "行情.csv"}"', 'data.map={"time": "日期", "series": "代码", "value": "收盘价"}', "train.epochs=3"]
    settings = Settings.read(environ={"SCENARIUM_STORE": str(folder / "store")}, sets=sets, scenario="market_forecast")
    handle = Handle(Registry(settings).scenario("market_forecast"))
    handle.train()
    return handle


def test_it_is_trained_on_the_users_file(trained: Handle) -> None:
    manifest = trained.store.open("market_forecast", 1).manifest
    assert manifest.data_origin == "real"
    assert {"pinball_pct", "skill_vs_naive", "skill_vs_ewma", "skill_vs_drift", "coverage_90"} <= set(manifest.metrics)
    assert 0.7 < manifest.metrics["coverage_90"] < 1


def test_report_shows_fans_calibration_and_loss_by_step(trained: Handle) -> None:
    sections = (trained.version.folder / "report.html").read_text("utf8").split("<h2>")
    drawn = [section.partition("</h2>")[0].partition(":")[0] for section in sections if "<svg" in section]
    assert [drawn.count(title) for title in ("Forecast / 预测", "Calibration / 校准", "Loss by step / 各步损失")] == [3, 1, 1]


def test_quantiles_never_cross_and_follow_the_price(trained: Handle) -> None:
    rng = np.random.default_rng(3)
    for level in (0.001, 1.0, 1e6):
        prices = (level * np.exp(np.cumsum(0.05 * rng.standard_normal(80)))).tolist()
        answer = trained.predict({"prices": prices})
        table = np.array(list(answer["quantiles"].values()))
        assert (np.diff(table, axis=0) > 0).all()
        assert answer["median"] == answer["quantiles"]["0.5"]
        assert abs(math.log(answer["median"][0] / prices[-1])) < 0.2


@pytest.mark.parametrize(
    ("prices", "words", "field"),
    [
        ([1.0] * 10, "at least 65", "prices"),
        ([1.0] * 64 + [0.0], "positive", "prices"),
        ([1.0] * 64 + [float("inf")], "finite", "prices.64"),
        ([1e-300] * 32 + [1e300] * 33, "powers of ten", "prices"),
    ],
)
def test_bad_prices_name_the_field(trained: Handle, prices: list[float], words: str, field: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        trained.predict({"prices": prices})
    assert (caught.value.field, caught.value.status) == (field, 422)


def test_a_flat_series_is_answered(trained: Handle) -> None:
    answer = trained.predict({"prices": [5.0] * 65})
    assert all(math.isfinite(value) for values in answer["quantiles"].values() for value in values)


@pytest.mark.slow
def test_real_stocks_beat_every_simple_forecast(tmp_path: Path) -> None:
    settings = Settings.read(environ={"SCENARIUM_STORE": str(tmp_path / "store")}, scenario="market_forecast")
    manifest = Handle(Registry(settings).scenario("market_forecast")).train().version.manifest
    assert manifest.data_origin == "real"
    assert manifest.baseline is not None
    assert all(manifest.metrics[f"skill_vs_{name}"] > 0 for name in ("naive", "drift", "ewma"))
