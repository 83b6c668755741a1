"""How much a key may do: requests in a window, and requests a day (UTC).

On one gateway this is counted here. The library ``limits`` was measured first: its in-memory storage starts a task that walks all its
counters on every hit, 26 µs a request with one key and 220 µs with 1000, and its moving window goes through a thread. The generic cell
rate algorithm needs one number a key and 1 µs, and that number also says when the next request will be let in. Where several gateways
count together (``[gateway] redis``) ``limits`` does it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from scenarium.core.errors import ScenariumError
from scenarium.gateway import logs

if TYPE_CHECKING:
    from scenarium.gateway.keys import Key

DAY_S = 86_400
REDIS_S = 0.25
"""How long an answer of Redis is waited for."""
REDIS_REST_S = 5.0
"""How long Redis is left alone after it failed."""


class Limited(ScenariumError):
    """A key has used up what it may do."""

    def __init__(self, key: Key, wait: float, headers: list[tuple[bytes, bytes]], *, daily: bool) -> None:
        if daily:
            super().__init__("SCN-4106", ident=key.id, limit=key.daily)
        else:
            assert key.rate is not None
            super().__init__("SCN-4105", ident=key.id, limit=key.rate.limit, window=key.rate.window)
        self.wait = wait
        """Seconds until the next request can be let in."""
        self.reason = "quota" if daily else "rate"
        self.headers = [(b"retry-after", b"%d" % math.ceil(wait)), *headers]


class Limits:
    """The counts of this gateway. The generic cell rate algorithm (ITU-T I.371): a key may spend its whole window at once, and then goes on evenly."""

    def __init__(self) -> None:
        self._full: dict[str, float] = {}
        """When each key will have its whole window again."""
        self.day = ""
        self._ends = 0.0
        self.used: dict[str, int] = {}
        """Requests of this day."""
        self.unsaved: dict[str, int] = {}
        """Those of them that the key file has not heard of."""

    def take(self, key: Key, now: float) -> None:
        """Count one request; ``now`` is monotonic, in seconds.

        Raises:
            Limited: SCN-4105, SCN-4106. Nothing was counted.
        """
        rate = key.rate
        if key.daily is not None:
            self.turn()
            if self.used.get(key.id, 0) >= key.daily:
                wait = self._ends - time.time()
                raise Limited(key, wait, _headers(key.daily, DAY_S, 0, wait), daily=True)
        if rate is not None:
            start = max(now, self._full.get(key.id, now))
            wait = start - now - (rate.window - rate.window / rate.limit)
            if wait > 1e-9:
                raise Limited(key, wait, self.headers(key, now), daily=False)
            self._full[key.id] = start + rate.window / rate.limit
        if key.daily is not None:
            self.used[key.id] = self.used.get(key.id, 0) + 1
            self.unsaved[key.id] = self.unsaved.get(key.id, 0) + 1

    def headers(self, key: Key, now: float) -> list[tuple[bytes, bytes]]:
        """``RateLimit-*`` (draft-ietf-httpapi-ratelimit-headers) for a key with a rate; empty for one without."""
        rate = key.rate
        if rate is None:
            return []
        ahead = max(0.0, self._full.get(key.id, now) - now)
        return _headers(rate.limit, rate.window, int((rate.window - ahead) * rate.limit / rate.window + 1e-6), ahead)

    def turn(self) -> None:
        """Begin a new day at midnight UTC."""
        now = time.time()
        if now >= self._ends:
            self.day = datetime.fromtimestamp(now, UTC).date().isoformat()
            self._ends = (now // DAY_S + 1) * DAY_S
            self.used, self.unsaved = {}, {}

    def saved(self, day: str, written: Mapping[str, int], totals: Mapping[str, int]) -> None:
        """The key file has heard of ``written``, and holds ``totals``, in which other gateways' requests are."""
        if day != self.day:
            return
        for ident, count in written.items():
            self.unsaved[ident] -= count
            if not self.unsaved[ident]:
                del self.unsaved[ident]
        self.used = {ident: totals.get(ident, 0) + self.unsaved.get(ident, 0) for ident in {*totals, *self.unsaved}}


def _headers(limit: int, window: int, remaining: int, reset: float) -> list[tuple[bytes, bytes]]:
    return [
        (b"ratelimit-limit", b"%d" % limit),
        (b"ratelimit-remaining", b"%d" % remaining),
        (b"ratelimit-reset", b"%d" % math.ceil(reset)),
        (b"ratelimit-policy", b"%d;w=%d" % (limit, window)),
    ]


class Shared:
    """Counts that several gateways keep in one Redis, by the library ``limits``.

    Each gateway's own limits hold as well, so that a key without credit costs no trip. Where Redis does not answer they alone hold: a
    counter that is down must not stop the service.

    Raises:
        ScenariumError: SCN-1107 (no such library, no such URL).
    """

    def __init__(self, url: str) -> None:
        try:
            from limits.aio.storage import RedisStorage
            from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter
            from redis.asyncio import ConnectionPool

            self._pool = ConnectionPool.from_url(url, socket_timeout=REDIS_S, socket_connect_timeout=REDIS_S)
            self.storage = RedisStorage(f"async+{url}", connection_pool=cast(Any, self._pool), implementation="redispy", key_prefix="scenarium")
        except Exception as fault:  # the libraries raise their own errors for a missing package and a wrong URL
            raise ScenariumError("SCN-1107", reason=str(fault)) from fault
        self._window = SlidingWindowCounterRateLimiter(self.storage)
        self._daily = FixedWindowRateLimiter(self.storage)
        self._rest_until = 0.0

    async def take(self, key: Key, day: str, now: float) -> None:
        """Count one request among all gateways.

        Raises:
            Limited: SCN-4105, SCN-4106.
        """
        if now < self._rest_until:
            return
        try:
            async with asyncio.timeout(2 * REDIS_S):
                await self._take(key, day)
        except Limited:
            raise
        except Exception as fault:  # whatever a Redis client raises: refused, timed out, loading, read-only
            self._rest_until = now + REDIS_REST_S
            logs.event("error", "redis_unavailable", reason=f"{type(fault).__name__}: {fault}", rest_s=REDIS_REST_S)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.disconnect()

    async def _take(self, key: Key, day: str) -> None:
        from limits import RateLimitItemPerDay, RateLimitItemPerSecond

        if key.rate is not None:
            item: Any = RateLimitItemPerSecond(key.rate.limit, key.rate.window)
            if not await self._window.hit(item, key.id):
                reset, remaining = await self._window.get_window_stats(item, key.id)
                wait = max(0.001, reset - time.time())
                raise Limited(key, wait, _headers(key.rate.limit, key.rate.window, remaining, wait), daily=False)
        if key.daily is not None:
            item = RateLimitItemPerDay(key.daily)
            if not await self._daily.hit(item, key.id, day):
                wait = DAY_S - time.time() % DAY_S
                raise Limited(key, wait, _headers(key.daily, DAY_S, 0, wait), daily=True)
