"""From data to a version: what must not become one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scenarium.core import pipeline
from scenarium.core.errors import ScenariumError
from scenarium.core.registry import open_registry
from scenarium.core.store import Store

DISTANCE = """
@hookimpl
def score(rows, answers): return {"accuracy": 0.5, "distance": sum(a["distance"] for a in answers) / len(answers)}
"""


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # numpy's word on the planted number, in onnx's helper
def test_a_metric_that_is_not_finite_makes_no_version_and_loses_nothing(site: Path, distribution: Callable[..., None], pebbles_source: str) -> None:
    """A threshold beyond float32 puts every pebble infinitely far away."""
    distribution(site, "boulders", pebbles_source + DISTANCE)
    store, work = Store(str(site.parent / "store")), site.parent / "runs"

    def train(*sets: str) -> pipeline.Trained:
        return pipeline.train(open_registry(sets=sets, scenario="boulders").scenario("boulders"), store, work)

    with pytest.raises(ScenariumError) as caught:
        train("model.shift=1e39")
    assert caught.value.code == "SCN-3009"
    assert "distance = inf" in caught.value.title()
    assert "accuracy" not in caught.value.title()
    assert "train.lr" in caught.value.hint()
    (kept,) = (work / "boulders").iterdir()
    assert str(kept) in caught.value.hint("zh")
    assert store.versions("boulders") == []
    assert train("model.shift=1").version.number == 1
