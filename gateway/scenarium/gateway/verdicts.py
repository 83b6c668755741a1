"""Whether the candidate of a rollout is worse than production. Pure logic over what both did lately.

Nothing is judged by single samples. Each cause compares a bound of an interval, ``Z`` standard errors wide, with its limit, so that a
candidate is taken back only when the figures leave no room for its being within the limit; three standard errors, since they are looked
at every second. Both sides count their last ``WINDOW`` answers.

- ``error_rate``: the lower bound of the difference of the two shares of server errors (Newcombe 1998, method 10: from two Wilson score
  intervals).
- ``latency``: the lower bound of the candidate's 95th percentile over the upper bound of production's, both distribution-free from order
  statistics (Hahn & Meeker 1991, ch. 5). Only of requests that clients waited for: mirrored ones run at the lowest priority.
- ``disagreement``: the Wilson lower bound of the mean of values in [0, 1], whose variance is at most that of a share.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from scenarium.core.errors import Words
from scenarium.gateway.metrics import LATENCY_S, OUTCOMES, Histogram

if TYPE_CHECKING:
    from scenarium.core.rollouts import Cause, Limits
    from scenarium.gateway.requests import Outcome

Z = 3.0
WINDOW = 1000
LEAST_S = 0.005
"""Smaller differences of latency are the scheduler's, whatever their ratio."""
NO_EVIDENCE = ("busy", "cancelled", "slow", "stopped")
"""Failures that say nothing about a version: the client left, or the gateway had no room. A passed deadline says something where it was
the scenario's own, not one that the client had chosen."""


class Verdict(NamedTuple):
    """Why a rollout is to end."""

    cause: Cause
    reason: Words


class Arm:
    """What one side of a rollout did: counts since its begin for the metrics, and the last ``WINDOW`` answers."""

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.latency = Histogram(LATENCY_S)
        self.errors: deque[bool] = deque(maxlen=WINDOW)
        self.seconds: deque[float] = deque(maxlen=WINDOW)

    def note(self, outcome: Outcome, seconds: float, hurried: bool = False) -> None:
        """Count one request; ``hurried``: its client gave it less time than the scenario does."""
        failure, status = outcome.failure, outcome.status
        if failure:
            self.outcomes[failure if failure in OUTCOMES else "server_error"] += 1
            if failure not in NO_EVIDENCE and not (hurried and failure == "deadline"):
                self.errors.append(True)
            return
        self.outcomes["ok" if status < 400 else "client_error" if status < 500 else "server_error"] += 1
        self.latency.observe(seconds)
        self.errors.append(status >= 500)
        if status < 400:
            self.seconds.append(seconds)

    def figures(self) -> dict[str, Any]:
        """What a person wants to see of it."""
        return {
            "requests": sum(self.outcomes.values()),
            "outcomes": dict(self.outcomes),
            "error_rate": round(sum(self.errors) / len(self.errors), 4) if self.errors else None,
            "p95_ms": round(percentile(self.seconds) * 1000, 2) if self.seconds else None,
        }


def wilson(share: float, n: int) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927)."""
    middle, spread = share + Z * Z / (2 * n), Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return max(0.0, (middle - spread) / (1 + Z * Z / n)), min(1.0, (middle + spread) / (1 + Z * Z / n))


def excess(candidate: Sequence[bool], production: Sequence[bool]) -> float:
    """The lower bound of how far the candidate's share of errors lies above production's (0 where production answered nothing)."""
    share = sum(candidate) / len(candidate)
    low, _ = wilson(share, len(candidate))
    if not production:
        return low
    other = sum(production) / len(production)
    _, high = wilson(other, len(production))
    return share - other - math.sqrt((share - low) ** 2 + (high - other) ** 2)


def percentile(values: Sequence[float], q: float = 0.95) -> float:
    """The q-quantile by the nearest rank."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


def percentile_bounds(values: Sequence[float], q: float = 0.95) -> tuple[float, float]:
    """Lower and upper bound of the q-quantile; 0 or infinite where there are too few values for one."""
    ordered, n = sorted(values), len(values)
    spread = Z * math.sqrt(n * q * (1 - q))
    low, high = math.floor(n * q - spread), math.ceil(n * q + spread)
    return (ordered[low - 1] if low >= 1 else 0.0), (ordered[high - 1] if high <= n else math.inf)


def judge(limits: Limits, production: Arm, canary: Arm, shadow: Arm, disagreements: Sequence[float]) -> Verdict | None:
    """The first cause that holds, or None."""
    for arm in (canary, shadow):
        if len(arm.errors) >= limits.min_requests and (low := excess(arm.errors, production.errors)) > limits.max_error_rate:
            shares = [sum(each) / max(1, len(each)) for each in (arm.errors, production.errors)]
            figures = f"{shares[0]:.1%} / {shares[1]:.1%} (> +{low:.1%})"
            return Verdict("error_rate", Words(f"server errors of candidate / production: {figures}", f"候选版本 / 生产版本的服务器错误率：{figures}"))
    if len(canary.seconds) >= limits.min_requests and len(production.seconds) >= limits.min_requests:
        low, high = percentile_bounds(canary.seconds)[0], percentile_bounds(production.seconds)[1]
        if low > limits.max_latency_ratio * high and low - high > LEAST_S:
            pair = [percentile(each) * 1000 for each in (canary.seconds, production.seconds)]
            figures = f"{pair[0]:.1f} ms / {pair[1]:.1f} ms (> {low / high:.2f})" if high else f"{pair[0]:.1f} ms / {pair[1]:.1f} ms"
            return Verdict("latency", Words(f"95th percentile of candidate / production: {figures}", f"候选版本 / 生产版本的第 95 百分位延迟：{figures}"))
    n = len(disagreements)
    if n >= limits.min_requests and (low := wilson(mean := sum(disagreements) / n, n)[0]) > limits.max_disagreement:
        figures = f"{mean:.3f} (> {low:.3f}, n = {n})"
        return Verdict("disagreement", Words(f"mean disagreement with production: {figures}", f"与生产版本的平均分歧：{figures}"))
    return None
