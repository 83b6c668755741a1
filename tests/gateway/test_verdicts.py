"""What the figures of a rollout say: no candidate that is as good as production is taken back, a worse one soon."""

from __future__ import annotations

import random

import pytest

from scenarium.core.rollouts import Limits
from scenarium.gateway.requests import Outcome
from scenarium.gateway.verdicts import Arm, excess, judge, percentile, percentile_bounds, wilson

LIMITS = Limits()


class Pair:
    """A production and a candidate that answer at random, judged after each request of the candidate."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.production, self.canary, self.shadow, self.apart = Arm(), Arm(), Arm(), []

    def ask(self, arm, errors=0.0, slower=1.0):
        seconds = self.rng.lognormvariate(-4, 0.5) * slower
        arm.note(Outcome(500 if self.rng.random() < errors else 200, b""), seconds)

    def judged(self, requests, **candidate):
        """The cause and after how many of the candidate's requests; production answers 19 times as many."""
        base = candidate.pop("base", 0.0)
        for n in range(1, requests + 1):
            for _ in range(19):
                self.ask(self.production, base)
            self.ask(self.canary, **candidate)
            if n % 10 == 0 and (found := judge(LIMITS, self.production, self.canary, self.shadow, self.apart)):
                return found.cause, n
        return None, requests


@pytest.mark.parametrize("base", [0.0, 0.05])
def test_equal_versions_are_left_alone(base):
    assert {Pair(seed).judged(500, base=base, errors=base)[0] for seed in range(40)} == {None}


@pytest.mark.parametrize(
    ("candidate", "cause", "within"), [({"errors": 0.3}, "error_rate", 100), ({"errors": 1.0}, "error_rate", 50), ({"slower": 3.0}, "latency", 250)]
)
def test_a_worse_candidate_is_found_soon(candidate, cause, within):
    for seed in range(20):
        found, after = Pair(seed).judged(500, **candidate)
        assert found == cause
        assert LIMITS.min_requests <= after <= within


def test_a_candidate_that_is_a_little_worse_but_within_the_limit_is_left_alone():
    assert {Pair(seed).judged(500, base=0.01, errors=0.02)[0] for seed in range(20)} == {None}
    assert {Pair(seed).judged(500, slower=1.3)[0] for seed in range(20)} == {None}


def test_nothing_is_judged_by_few_requests():
    pair = Pair(0)
    for _ in range(LIMITS.min_requests - 1):
        pair.canary.note(Outcome(500, b""), 9.0)
        pair.shadow.note(Outcome(0, b"", failure="poison"), 9.0)
        pair.apart.append(1.0)
    assert judge(LIMITS, pair.production, pair.canary, pair.shadow, pair.apart) is None
    pair.apart.append(1.0)
    found = judge(LIMITS, pair.production, pair.canary, pair.shadow, pair.apart)
    assert found is not None
    assert found.cause == "disagreement"
    assert "1.000" in found.reason.en


def test_disagreement_is_judged_by_the_bound_of_its_mean():
    for seed in range(20):
        rng = random.Random(seed)
        within = [float(rng.random() < 0.18) for _ in range(1000)]
        beyond = [float(rng.random() < 0.45) for _ in range(150)]
        assert judge(LIMITS, Arm(), Arm(), Arm(), within) is None
        assert judge(LIMITS, Arm(), Arm(), Arm(), beyond) is not None


def test_milliseconds_of_the_scheduler_are_no_regression():
    pair = Pair(0)
    for _ in range(1000):
        pair.production.note(Outcome(200, b""), 0.0005)
        pair.canary.note(Outcome(200, b""), 0.004)
    assert judge(LIMITS, pair.production, pair.canary, pair.shadow, ()) is None


def test_what_says_nothing_of_a_version_is_counted_and_no_evidence():
    arm = Arm()
    for failure in ("busy", "cancelled", "slow", "stopped"):
        arm.note(Outcome(0, b"", failure=failure), 1.0)
    assert not arm.errors
    arm.note(Outcome(422, b""), 1.0)
    arm.note(Outcome(0, b"", failure="deadline"), 1.0)
    arm.note(Outcome(0, b"", failure="died"), 1.0)
    arm.note(Outcome(0, b"", failure="deadline"), 0.001, hurried=True)
    assert list(arm.errors) == [False, True, True]
    assert arm.outcomes == {"ok": 0, "client_error": 1, "server_error": 3, "busy": 1, "deadline": 2, "cancelled": 1}
    assert not arm.seconds  # a refusal costs no forward


def test_the_intervals_cover_what_they_should():
    """Coverage by simulation: three standard errors leave out 0.27 %, and the quantile's bounds no more."""
    rng = random.Random(1)
    missed = wrong = 0
    for _ in range(2000):
        k = sum(rng.random() < 0.1 for _ in range(100)) / 100
        low, high = wilson(k, 100)
        missed += not low <= 0.1 <= high
        values = [rng.random() for _ in range(200)]
        low, high = percentile_bounds(values)
        wrong += not low <= 0.95 <= high
    assert missed <= 16
    assert wrong <= 16
    assert percentile_bounds([1.0] * 20)[1] == float("inf")
    assert percentile([3.0, 1.0, 2.0]) == 3.0


def test_the_difference_of_shares_as_newcombe_gives_it():
    """Newcombe 1998, table II (a): 56/70 against 48/80, 95 %: 0.0524 to 0.3339 by method 10."""
    from scenarium.gateway import verdicts

    before, verdicts.Z = verdicts.Z, 1.959964
    try:
        assert excess([True] * 56 + [False] * 14, [True] * 48 + [False] * 32) == pytest.approx(0.0524, abs=1e-4)
    finally:
        verdicts.Z = before
