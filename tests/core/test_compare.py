"""Promotion compares on the same held-out rows and refuses a worse version; rollback is instant; loading checks plugin and answer."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scenarium.core import acceptance, compare, pipeline, triton_repository
from scenarium.core.errors import ScenariumError
from scenarium.core.manifest import Manifest
from scenarium.core.registry import Scenario, open_registry
from scenarium.core.runtime import Runtime
from scenarium.core.store import Store, Version
from scenarium.core.types import Baseline, Evaluation, Metric


@pytest.fixture
def store(site: Path) -> Store:
    return Store(str(site.parent / "store"))


def scenario(*sets: str) -> Scenario:
    return open_registry(sets=sets, scenario="pebbles").scenario("pebbles")


def train(store: Store, *sets: str) -> Version:
    return pipeline.train(scenario(*sets), store, Path(store.root) / "runs").version


def production(store: Store) -> int | None:
    number: int | None = store.aliases("pebbles")["aliases"].get("production")
    return number


def test_the_first_above_its_floor_then_promote_and_rollback(store: Store) -> None:
    train(store, "model.shift=6")  # every pebble is light: as good as the majority, its floor
    assert production(store) == 1
    train(store, "model.shift=1.2")  # better, and yet only the first takes the alias by itself
    assert production(store) == 1
    train(store)
    better = compare.promote(scenario(), store, 3)
    assert better is not None
    assert better.old == 1
    assert production(store) == 3
    with pytest.raises(ScenariumError, match=r"SCN-5006 Version 2 .* worse than version 3") as refused:
        compare.promote(scenario(), store, 2)
    assert "--force --reason" in refused.value.hint("zh")
    assert production(store) == 3
    assert compare.promote(scenario(), store, 2, force="only this one is certified") is None
    entry = store.aliases("pebbles")["history"][-1]
    assert (entry["to"], entry["forced"], entry["reason"]) == (2, True, "only this one is certified")
    began = time.monotonic()
    assert compare.rollback(store, "pebbles") == (2, 3)
    assert time.monotonic() - began < 1
    assert production(store) == 3
    # Gateways may still ask for the versions before; whoever names none gets the highest.
    assert ", 3 ] }" in (Path(triton_repository.root(store)) / "pebbles" / "config.pbtxt").read_text(encoding="utf8")
    with pytest.raises(ScenariumError, match=r"SCN-5001"):
        compare.rollback(store, "pebbles", 77)


def test_the_interval_is_paired_seeded_and_signed(store: Store) -> None:
    train(store)
    train(store, "model.shift=1.5")
    found = compare.compare(scenario(), store, 1, 2)
    assert found.interval is not None
    assert found.interval[0] <= found.difference <= found.interval[1] < 0
    assert found.worse
    assert found.resamples == compare.RESAMPLES
    assert found == compare.compare(scenario(), store, 1, 2)
    reverse = compare.compare(scenario(), store, 2, 1)
    assert not reverse.worse
    assert reverse.difference == pytest.approx(-found.difference)
    same = compare.compare(scenario(), store, 1, 1)
    assert same.interval == (0.0, 0.0)
    assert not same.worse


def test_the_bootstrap_interval_covers_the_truth(store: Store) -> None:
    """Against the normal approximation for a paired difference of proportions, n large enough for it to hold."""
    version = train(store)
    rng = np.random.default_rng(1)
    rows = [{"heap": "light", "grams": 1.0} for _ in range(800)]
    right = {"old": rng.random(800) < 0.80, "new": rng.random(800) < 0.84}
    answers = {key: [{"heap": "light" if hit else "heavy"} for hit in hits] for key, hits in right.items()}
    made = {key: Evaluation({"accuracy": float(hits.mean())}, rows, answers[key]) for key, hits in right.items()}
    found = compare.judge(scenario(), version.manifest, 0, made["old"], made["new"])
    paired = right["new"].astype(float) - right["old"].astype(float)
    spread = 1.96 * paired.std() / np.sqrt(len(paired))
    assert found.interval == pytest.approx((paired.mean() - spread, paired.mean() + spread), abs=0.006)


def test_lower_is_better_and_no_rows(store: Store) -> None:
    version = train(store)
    manifest = version.manifest.model_copy(update={"metric": Metric("error", higher_is_better=False)})
    bare = [Evaluation({"error": value}) for value in (0.2, 0.3)]
    assert compare.judge(scenario(), manifest, 0, bare[0], bare[1]).worse
    assert not compare.judge(scenario(), manifest, 0, bare[1], bare[0]).worse
    assert compare.judge(scenario(), manifest, 0, bare[0], Evaluation({"error": float("nan")})).worse


def test_below_the_floor_nothing_is_promoted(store: Store) -> None:
    version = train(store)
    raised = version.manifest.model_copy(update={"metric": Metric("accuracy", floor=0.999)})
    assert compare.reaches_floor(version.manifest)
    assert not compare.reaches_floor(raised)
    beaten = version.manifest.model_copy(update={"baseline": Baseline("oracle", {"accuracy": 1.0})})
    assert not compare.reaches_floor(beaten)
    path = version.folder / "manifest.json"
    path.write_text(beaten.model_dump_json(), encoding="utf8")
    (Path(store.path("pebbles")) / "aliases.json").unlink()
    with pytest.raises(ScenariumError, match=r"SCN-5011 .*oracle reaches 1\.0000"):
        compare.promote(scenario(), store, 1)
    assert production(store) is None
    with pytest.raises(ScenariumError, match=r"SCN-5012"):
        compare.rollback(store, "pebbles")


def test_changed_data_or_metric_cannot_be_compared(store: Store, site: Path) -> None:
    file = site.parent / "own.csv"
    rng = np.random.default_rng(0)
    rows = [(round(rng.normal(3 + 4 * (i % 2), 1), 3), ("light", "heavy")[i % 2]) for i in range(120)]
    file.write_text("grams,heap\n" + "".join(f"{g},{h}\n" for g, h in rows), encoding="utf8")
    train(store, f"data.path={file}")
    train(store, f"data.path={file}", "model.shift=0.1")
    compare.compare(scenario(), store, 1, 2)
    file.write_text(file.read_text(encoding="utf8") + "2.5,light\n", encoding="utf8")
    with pytest.raises(ScenariumError, match=r"SCN-5007.*has changed since"):
        compare.compare(scenario(), store, 1, 2)
    path = Path(store.path("pebbles", 1, "manifest.json"))
    changed = json.loads(path.read_text(encoding="utf8"))
    changed["metric"]["name"] = "recall"
    path.write_text(json.dumps(changed), encoding="utf8")
    with pytest.raises(ScenariumError, match=r"SCN-5007.*recall / accuracy"):
        compare.compare(scenario(), store, 1, 2)


# ── what must hold on load ────────────────────────────────────────────────────────────────────────────────────────────


def opened(version: Version, manifest: Manifest | None = None, made: Scenario | None = None) -> Runtime:
    return Runtime.open(made or scenario(), version.folder, manifest or version.manifest)


def test_an_incompatible_plugin_is_refused_with_the_pip_line(store: Store) -> None:
    version = train(store)
    now = scenario()
    upgraded = replace(now.plugin, version="0.2.0")
    with pytest.raises(ScenariumError, match=r"SCN-5003[\s\S]*pip install 'scenarium-pebbles>=0\.1,<0\.2'") as refused:
        opened(version, made=Scenario("pebbles", upgraded, now.settings))
    assert "scenarium-pebbles 0.2.0" in refused.value.title("zh")
    assert opened(version, made=Scenario("pebbles", replace(now.plugin, version="0.1.9"), now.settings))
    other = replace(now.plugin, name="stones")
    with pytest.raises(ScenariumError, match=r"belongs to plugin 'pebbles'"):
        opened(version, made=Scenario("pebbles", other, now.settings))
    dropped = version.manifest.model_copy(update={"config": {**version.manifest.config, "model": {"shift": 0, "gone": 1}}})
    with pytest.raises(ScenariumError, match=r"SCN-5003.*model\.gone"):
        opened(version, dropped)
    assert store.open("pebbles").number == 1, "nothing is lost"


def test_a_sample_that_is_answered_otherwise_names_what_changed(store: Store) -> None:
    version = train(store)
    answer = dict(version.manifest.answer or {})
    near = version.manifest.model_copy(update={"answer": {**answer, "distance": answer["distance"] + 5e-5}})
    assert opened(version, near)
    far = {**answer, "distance": answer["distance"] + 0.01}
    packages = {**version.manifest.packages, "numpy": "1.0.0"}
    with pytest.raises(ScenariumError, match=r"SCN-5005[\s\S]*distance[\s\S]*numpy 1\.0\.0 -> [\s\S]*pip install 'numpy==1\.0\.0'"):
        opened(version, version.manifest.model_copy(update={"answer": far, "packages": packages}))
    with pytest.raises(ScenariumError, match=r"SCN-5005[\s\S]*no package[\s\S]*scenarium train pebbles"):
        opened(version, version.manifest.model_copy(update={"answer": far}))
    assert opened(version, version.manifest.model_copy(update={"answer": far, "pure": False}))
    with pytest.raises(ScenariumError, match=r"SCN-5005[\s\S]*SCN-4001"):
        opened(version, version.manifest.model_copy(update={"sample": {"grams": -1}}))
    with pytest.raises(ScenariumError, match=r"SCN-5005[\s\S]*request class refuses"):
        opened(version, version.manifest.model_copy(update={"sample": {"ounces": 1}}))


def test_pictures_are_not_compared_byte_by_byte() -> None:
    png = "iVBORw0KGgoAAAANSUhEUgAA"
    assert acceptance._without_pictures({"map": png + "a", "boxes": [{"crop": png}]}) == {"map": "picture", "boxes": [{"crop": "picture"}]}
