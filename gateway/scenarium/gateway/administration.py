"""``/admin/…``: what operators ask of a running gateway. Who may is decided by ``admission``."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response

from scenarium.gateway.metrics import LATENCY_S
from scenarium.gateway.predict import Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from scenarium.gateway.app import Gateway
    from scenarium.gateway.links import WorkerLink
    from scenarium.gateway.services import Service

    Reply = Callable[..., Response]

BEGAN = time.time()


def add_routes(app: FastAPI, gateway: Gateway, reply: Reply) -> None:
    """The routes; ``reply(request, value)`` makes a JSON answer."""

    @app.post("/admin/reload")
    async def reload(request: Request) -> Response:
        return reply(request, await gateway.reload())

    @app.get("/admin/status")
    async def status(request: Request) -> Response:
        lang = Call(request.scope["headers"]).language
        found = [service_status(service, lang) for service in gateway.services.values()]
        pids = [os.getpid(), *(worker["pid"] for each in found for worker in each["workers"])]
        memory = dict(zip(pids, await asyncio.to_thread(lambda: [memory_mb(pid) for pid in pids]), strict=True))
        for each in found:
            for worker in each["workers"]:
                worker["memory_mb"] = memory[worker["pid"]]
        about = {
            "pid": os.getpid(),
            "uptime_s": round(time.time() - BEGAN),
            "clock_s": time.monotonic(),
            "memory_mb": memory[os.getpid()],
            "memory_used_mb": round(gateway.memory.used / 2**20, 1),
            "memory_budget_mb": gateway.memory.budget and round(gateway.memory.budget / 2**20, 1),
            "devices": {name: {"used_mb": gateway.memory.using[name] >> 20, "budget_mb": gateway.memory.limits[name] >> 20} for name in gateway.memory.devices},
            "draining": gateway.draining,
        }
        return reply(request, {"gateway": about | {"clock_s": time.monotonic()}, "latency_bounds_s": LATENCY_S, "scenarios": found})

    @app.get("/admin/logs/{name}")
    async def lines(request: Request, name: str, after: int = 0) -> Response:
        kept = gateway.service(name).lines
        return reply(request, {"lines": [line for line in kept if line["number"] > after]})


def service_status(service: Service, lang: str) -> dict[str, Any]:
    """The figures of one scenario; counts since the gateway's start, from which a reader takes differences."""
    stats, fault = service.stats, service.last_fault
    return {
        "name": service.name,
        "state": service.state,
        "ready": service.ready,
        "version": service.served,
        "engine": service.engine,
        "device": service.config.device,
        "workers": [worker_status(link) for side in service.sides() for link in side.links()],
        "queue": service.batcher.depth,
        "open": service.batcher.live,
        "outcomes": stats.outcomes,
        "latency_counts": stats.latency.counts,
        "restarts": stats.restarts,
        "evictions": service.memory.evictions[service.name],
        "loads_on_demand": service.memory.loads[service.name],
        "rollout": service.trial and service.trial.status(),
        "last_fault": fault and {"at": fault["at"], "event": fault["event"], "error": fault[lang]},
        "error": service.fault and service.fault.problem(lang),
    }


def worker_status(link: WorkerLink) -> dict[str, Any]:
    """The figures of one worker."""
    return {
        "pid": link.process.pid,
        "version": link.version,
        "ready": link.serving and link.well,
        "device": link.device_memory.device if link.device_memory else "cpu",
        "threads": link.threads,
        "load_ms": link.load_ms,
    }


def memory_mb(pid: int) -> float | None:
    """Proportional set size (each shared page counted by its share): ``smaps_rollup``, see proc(5). None where it cannot be told."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return round(next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024, 1)
    except (OSError, StopIteration):
        return None
