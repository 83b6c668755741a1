"""Which of the measured ways is kept. The whole path with real models: tests/gateway/test_optimised.py."""

from __future__ import annotations

import pytest

from scenarium.core.compare import Comparison
from scenarium.core.config import ServeConfig
from scenarium.core.errors import Words
from scenarium.core.manifest import Manifest, Optimised, PluginRef
from scenarium.core.optimising import Speed, Tried, Way, fastest
from scenarium.core.types import Metric

ORIGINAL = Tried(Way("torch", "fp32"), 4, Speed(10.0, 100.0, 1))


def tried(per_second: float, new: float, old: float = 0.8, higher: bool = True, precision: str = "int8") -> Tried:
    difference = (new - old) if higher else (old - new)
    comparison = Comparison(Metric("m", higher), 1, 0, 100, old, new, difference, None, 0)
    return Tried(Way("onnx", precision), 1, Speed(1.0, per_second, 8), comparison)


@pytest.mark.parametrize(
    ("candidates", "kept"),
    [
        ([tried(300, 0.8), tried(400, 0.793), tried(900, 0.78)], 1),  # 400/s loses 0.9 %; 900/s loses 2.5 %
        ([tried(99, 0.9), tried(100, 0.9)], None),  # better, but no faster than the original
        ([tried(200, 0.505, 0.5, higher=False), tried(150, 0.5, 0.5, higher=False)], 0),  # an error that grows by 1 %
        ([tried(200, 0.51, 0.5, higher=False), tried(150, 0.4, 0.5, higher=False)], 1),
        ([tried(200, -0.1, 0.0), tried(150, 0.0, 0.0)], 1),  # of nothing, nothing can be lost
        ([tried(200, float("nan"))], None),
        ([Tried(Way("openvino", "bf16"), reason=Words("no bf16", "无 bf16")), tried(101, 0.8)], 1),
    ],
)
def test_the_most_a_second_of_those_that_lose_little_enough(candidates: list[Tried], kept: int | None) -> None:
    assert fastest(ORIGINAL, candidates, 0.01) is (None if kept is None else candidates[kept])


def test_only_an_optimised_version_has_an_engine_of_its_own_and_triton_goes_before_it() -> None:
    plugin = PluginRef(name="x", distribution="x", version="1", loadable="")
    given = {"config": {}, "request_schema": {}, "response_schema": {}, "sample": {}, "plugin": plugin, "metric": Metric("m")}
    manifest = Manifest(scenario="x", created="2026-01-01T00:00:00Z", **given)
    assert manifest.serving(ServeConfig(engine="torch")).engine == "torch"
    optimised = manifest.model_copy(update={"optimised": Optimised(source=1, engine="openvino:bf16", precision="bf16")})
    stored = Manifest.model_validate_json(optimised.model_dump_json())
    assert stored.serving(ServeConfig(engine="torch", workers=3)) == ServeConfig(engine="openvino:bf16", workers=3)
    assert stored.serving(ServeConfig(engine="triton")).engine == "triton"
