"""What the store keeps of a rollout, and who belongs to the canary."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest

from scenarium.core import compare, rollouts
from scenarium.core.errors import ScenariumError, Words
from scenarium.core.manifest import Manifest, PluginRef
from scenarium.core.rollouts import Limits, in_canary, standing
from scenarium.core.store import Store
from scenarium.core.types import Disagreement, Metric

LIMITS = Limits(min_requests=10)


def commit(store: Store, **values: object) -> int:
    made = {
        "scenario": "shop",
        "created": datetime.now(UTC),
        "plugin": PluginRef(name="shop", distribution="scenarium-shop", version="0.1.0", loadable=">=0.1,<0.2"),
        "config": {},
        "request_schema": {},
        "response_schema": {},
        "sample": {},
        "metric": Metric("accuracy"),
    }
    with store.draft("shop") as draft:
        (draft / "weights").write_bytes(b"x")
        return store.commit("shop", draft, Manifest.model_validate({**made, **values})).number


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, clean: Path) -> Iterator[Store]:
    """A store with four versions, the first of them production."""
    found = Store(str(clean / "store") if request.param == "file" else "memory://bucket/rollouts", cache=clean / "fetched")
    for _ in range(4):
        commit(found)
    found.set_alias("shop", "production", 1, "first")
    yield found
    if request.param == "memory":
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_a_rollout_begins_is_widened_and_stopped(store: Store) -> None:
    begun = rollouts.start(store, "shop", 2, 0.05, False, LIMITS)
    assert standing(store, "shop") == (1, begun)
    assert begun.running
    assert (begun.version, begun.production, begun.canary, begun.shadow) == (2, 1, 0.05, False)
    wider = rollouts.start(store, "shop", 2, 0.2, True, Limits())
    assert (wider.id, wider.started, wider.canary, wider.shadow, wider.limits) == (begun.id, begun.started, 0.2, True, Limits())
    assert store.aliases("shop")["aliases"] == {"production": 1, "candidate": 2}
    with pytest.raises(ScenariumError, match=r"SCN-5013.*version 2 runs"):
        rollouts.start(store, "shop", 3, 0.05, False, LIMITS)
    rollouts.stop(store, "shop")
    found = standing(store, "shop").rollout
    assert found is not None
    assert (found.id, found.state, found.cause, found.running) == (begun.id, "stopped", "stopped", False)
    assert store.aliases("shop")["aliases"] == {"production": 1}
    assert [(e["alias"], e["action"], e["to"]) for e in store.aliases("shop")["history"]][1:] == [
        ("candidate", "rollout", 2),
        ("candidate", "rollout", 2),
        ("candidate", "stopped", None),
    ]
    with pytest.raises(ScenariumError, match="SCN-5015"):
        rollouts.stop(store, "shop")


def test_what_cannot_be_rolled_out_says_why(store: Store) -> None:
    with pytest.raises(ScenariumError, match=r"SCN-5014.*production already"):
        rollouts.start(store, "shop", 1, 0.05, False, LIMITS)
    with pytest.raises(ScenariumError, match="SCN-5001"):
        rollouts.start(store, "shop", 9, 0.05, False, LIMITS)
    with pytest.raises(ScenariumError, match=r"SCN-5014.*not pure"):
        rollouts.start(store, "shop", commit(store, pure=False), 0.0, True, LIMITS)
    lost = commit(store, answer={"verdict": "fraud"}, disagreement=Disagreement("label", "/label"))
    with pytest.raises(ScenariumError, match=r"SCN-5014.*'/label'"):
        rollouts.start(store, "shop", lost, 0.0, True, LIMITS)
    assert standing(store, "shop") == (1, None)


def test_prune_keeps_the_version_that_is_tried_and_may_take_it_afterwards(store: Store) -> None:
    rollouts.start(store, "shop", 2, 0.05, False, LIMITS)
    assert store.prunable("shop", 1) == [3]
    rollouts.stop(store, "shop")
    assert store.prunable("shop", 1) == [2, 3]


@pytest.mark.parametrize(
    ("alias", "number", "state", "candidate"),
    [
        ("production", 2, "promoted", None),
        ("production", 3, "stopped", None),
        ("production", 1, "running", 2),
        ("candidate", 3, "stopped", 3),
        ("candidate", 2, "running", 2),
        ("other", 3, "running", 2),
    ],
)
def test_an_alias_that_is_set_meanwhile_settles_the_rollout_in_the_same_write(store: Store, alias: str, number: int, state: str, candidate: int | None) -> None:
    rollouts.start(store, "shop", 2, 0.05, False, LIMITS)
    store.set_alias("shop", alias, number, "test")
    found = standing(store, "shop").rollout
    assert found is not None
    assert found.state == state
    assert store.aliases("shop")["aliases"].get("candidate") == candidate
    assert bool(found.reason) == (state != "running")


def test_a_rollback_of_production_ends_the_rollout_and_returns_past_it(store: Store) -> None:
    store.set_alias("shop", "production", 3, "better")
    rollouts.start(store, "shop", 4, 0.05, False, LIMITS)
    assert compare.rollback(store, "shop") == (3, 1)
    found = standing(store, "shop").rollout
    assert found is not None
    assert found.state == "stopped"
    assert "version 1" in found.reason["en"]


def test_of_many_that_end_it_one_does(store: Store) -> None:
    begun = rollouts.start(store, "shop", 2, 0.05, False, LIMITS)

    def end(number: int) -> bool:
        return rollouts.end(store, "shop", begun.id, "rolled_back", "latency", Words(f"slow {number}", f"慢 {number}"), {"n": number})

    if store.local:  # an object store has no lock: there the last one's words stand
        with ThreadPoolExecutor(4) as pool:
            assert sorted(pool.map(end, range(4))) == [False, False, False, True]
    else:
        assert [end(0), end(1)] == [True, False]
    found = standing(store, "shop").rollout
    assert found is not None
    assert (found.state, found.cause) == ("rolled_back", "latency")
    assert found.reason["en"] == f"slow {found.figures['n']}"
    assert not rollouts.end(store, "shop", "another", "stopped", "stopped", Words("", ""))


def test_a_damaged_record_is_told_with_its_file(store: Store) -> None:
    record = store.aliases("shop")
    store.write(store.path("shop", "aliases.json"), json.dumps({**record, "rollout": {"id": 1}}).encode())
    with pytest.raises(ScenariumError, match=r"aliases\.json"):
        standing(store, "shop")


def test_the_canary_is_a_pure_function_uniform_over_keys_and_grows_with_the_share() -> None:
    keys = [f"session-{n}" for n in range(20_000)]
    for share in (0.0, 0.01, 0.05, 0.5, 1.0):
        taken = sum(in_canary("shop", 2, share, key) for key in keys)
        assert abs(taken - share * len(keys)) <= 4 * math.sqrt(len(keys) * share * (1 - share)), share
    small = {key for key in keys if in_canary("shop", 2, 0.05, key)}
    assert small < {key for key in keys if in_canary("shop", 2, 0.2, key)}
    other = {key for key in keys if in_canary("shop", 3, 0.05, key)}
    assert len(small & other) < 100  # 50 expected: another version tries other clients
    assert in_canary("shop", 2, 1.0, "\udcff")
