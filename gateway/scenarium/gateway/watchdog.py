"""Whether the workers still live: a ping to each that is quiet, and now and then its own sample to each that is idle.

A ping is answered by the worker's listening thread even during a long forward, so a worker that misses it is stuck as a whole (stopped,
swapped out, or in native code that keeps the interpreter's lock) and is replaced; what it held is treated as after any death. The
sample shows that the model still answers. A scenario that is not pure gets pings alone, since its sample would leave a trace.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from scenarium.gateway import logs

if TYPE_CHECKING:
    from scenarium.gateway.links import WorkerLink
    from scenarium.gateway.services import Service

PERIOD_S = 2.0


async def watch(services: Mapping[str, Service]) -> None:
    """Look after all workers, for ever."""
    while True:
        await asyncio.sleep(PERIOD_S)
        for service in [side for each in services.values() for side in each.sides()]:
            for link in service.links():
                if link.serving and not link.watched:
                    link.watched = True
                    service.spawn(_look(service, link))


async def _look(service: Service, link: WorkerLink) -> None:
    try:
        now = time.monotonic()
        config = service.config
        idle = not service.batcher.holds(link)
        if config.probe_s and idle and link.pure and service.version and now - link.answered_at >= config.probe_s:
            body = json.dumps(service.version.manifest.sample).encode()
            status = await link.probe(body, config.hang_s)
            link.well = status is not None and status < 500
            if status is None:
                _replace(link, config.hang_s)
            elif not link.well:
                logs.event("error", "probe_failed", scenario=service.name, pid=link.process.pid, status=status)
        elif now - link.heard_at >= PERIOD_S and not await link.ping(config.hang_s):
            _replace(link, config.hang_s)
    finally:
        link.watched = False


def _replace(link: WorkerLink, seconds: float) -> None:
    if link.serving:
        link.kill(f"it said nothing for {seconds:g} s")
