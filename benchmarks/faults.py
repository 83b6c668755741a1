"""The faults of the hour of faults, their schedule, and whether all is well again after each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import resource
import signal
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.mixed_load import IMPURE, Failed, Load
from scenarium.core.errors import ScenariumError
from scenarium.core.store import PRODUCTION
from tests.gateway.conftest import GatewayProcess, Lab
from tests.gateway.load import Client, Unanswered

EVERY_S = 10.0
PAGE = 4096
SLOW_S = 2.0
"""``gateway.body_timeout_s``: what slow clients get."""
WORKERS = {"one": 1, "two": 2, IMPURE: 1, "talks": 1}
"""The scenarios and their workers. ``IMPURE`` is one that is not pure, so that what a dead worker held ends with an error; ``talks`` runs items in threads."""
SPARE = ["spare1", "spare2"]
"""Scenarios of which the memory budget holds one beside the others."""
WEIGHTS_MB, WORKER_MB = 128, 145
"""The weights of each of them, and about what a worker that holds them takes, in MiB."""
COMMON = ("plugin=unit", "serve.hang_s=2", "serve.probe_s=5", "serve.deadline_ms=60000", "serve.keep_warm=true")
SETTINGS = [
    f"gateway.body_timeout_s={SLOW_S:g}",
    "gateway.keep_alive_s=60",
    "gateway.drain_s=20",
    "gateway.jobs_keep_s=120",
    *(f"scenarios.{name}.{key}" for name in WORKERS for key in COMMON),
    *(f"scenarios.{name}.plugin=heavy" for name in SPARE),
]
PURE = [name for name in WORKERS if name != IMPURE]
DIED, NO_JOBS = "SCN-4008", "SCN-4127"


class Window(NamedTuple):
    """When a fault may cost its victims which error."""

    scenario: str
    """Empty: any."""
    began: float
    ended: float
    code: str


class Faults:
    """The schedule and the faults. Each method brings one about and returns when all is well again."""

    def __init__(self, lab: Lab, gateway: GatewayProcess, load: Load, disk: Path | None, seed: int) -> None:
        self.lab, self.gateway, self.load, self.disk = lab, gateway, load, disk
        self.rng = random.Random(seed)
        self.client = Client(gateway.url)
        self.windows: list[Window] = []
        self.recovery: dict[str, list[float]] = defaultdict(list)
        self.broken: list[str] = []
        """Faults after which not all was well in time, or that were not told as they should be."""
        self.kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "worker SIGKILL": self.worker_killed,
            "zygote SIGKILL": self.zygote_killed,
            "worker SIGSTOP": self.worker_stopped,
            "endless item": self.endless_item,
            "poison item": self.poison_item,
            "slow headers": self.slow_headers,
            "slow body": self.slow_body,
            "slow reader": self.slow_reader,
            "reload": self.reload,
            "promote": self.promote,
            "rollback": self.rollback,
            "full disk": self.full_disk,
            "eviction": self.eviction,
        }

    async def run(self, seconds: float) -> None:
        """A fault every ``EVERY_S``, for so long."""
        began, number, order = time.monotonic(), 0, list[str]()
        while (at := number * EVERY_S) < seconds:
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            if not order:
                order = self.rng.sample(list(self.kinds), len(self.kinds))
            kind, number = order.pop(), number + 1
            since = time.monotonic()
            try:
                took = await asyncio.wait_for(self.kinds[kind](), 60)
                self.recovery[kind].append(time.monotonic() - since if took is None else took)
                await self._have_a_spare()
            except (TimeoutError, AssertionError, Unanswered) as fault:
                await self.client.close(abort=True)
                self.broken.append(f"{kind} at {at:.0f} s: {type(fault).__name__} {fault}")
            print(f"{at:6.0f} s  {kind:15} {time.monotonic() - since:6.2f} s  sent {sum(self.load.sent.values())}", flush=True)

    # ── faults of processes ───────────────────────────────────────────────────────────────────────────────────────────

    async def worker_killed(self) -> None:
        """SIGKILL for a worker."""
        await self._end_worker(self.rng.choice(list(WORKERS)), signal.SIGKILL)

    async def worker_stopped(self) -> None:
        """SIGSTOP for a worker: it hangs as a whole."""
        await self._end_worker(self.rng.choice(list(WORKERS)), signal.SIGSTOP)

    async def zygote_killed(self) -> None:
        """SIGKILL for the zygote, and for a worker, so that a new zygote is needed."""
        name = self.rng.choice(list(WORKERS))
        workers = {worker["pid"] for each in WORKERS for worker in await self._workers(each)}
        children = Path(f"/proc/{self.gateway.popen.pid}/task/{self.gateway.popen.pid}/children").read_text().split()
        for pid in {int(child) for child in children} - workers:
            if b"zygote" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        await self._end_worker(name, signal.SIGKILL)

    async def poison_item(self) -> None:
        """An item that kills its worker, twice: it fails alone."""
        name = self.rng.choice(PURE)
        with self._window(name, DIED):
            await self.load.predict("poison", self.client, name, {"do": "kill"}, own="SCN-4009")
            await self._well(name)

    async def endless_item(self) -> None:
        """An item that never ends: it has its deadline, and its worker is replaced after a grace time."""
        name = self.rng.choice(PURE)
        before = {worker["pid"] for worker in await self._workers(name)}
        with self._window(name, DIED):
            await self.load.predict("endless", self.client, name, {"do": "hang"}, b"X-Scenarium-Deadline-Ms: 500", own="SCN-4007")
            while before <= {worker["pid"] for worker in await self._workers(name)}:
                await asyncio.sleep(0.02)
            await self._well(name)

    async def _end_worker(self, name: str, number: signal.Signals) -> None:
        pid = self.rng.choice([worker["pid"] for worker in await self._workers(name) if worker["ready"]])
        with self._window(name, DIED):
            os.kill(pid, number)
            await self._well(name, without=pid)

    # ── faults of clients ─────────────────────────────────────────────────────────────────────────────────────────────

    async def slow_headers(self) -> None:
        """Headers byte by byte."""
        await self._drip(b"POST /scenarios/one/predict HTTP/1.1\r\n", b"X-Slow: " + b"x" * 1000)

    async def slow_body(self) -> None:
        """A body byte by byte."""
        await self._drip(b"POST /scenarios/one/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", b"x" * 999)

    async def _drip(self, head: bytes, rest: bytes) -> None:
        before = await self._rejected("slow")
        reader, writer = await asyncio.open_connection(*self.client.address)
        writer.write(head)
        answer = asyncio.create_task(reader.read())
        for at in range(len(rest)):
            writer.write(rest[at : at + 1])
            await asyncio.wait({answer}, timeout=0.1)
            if answer.done():
                break
        with contextlib.suppress(ConnectionResetError):  # a byte crossed with the answer, and the kernel dropped both
            assert (await answer).startswith(b"HTTP/1.1 408 ")
        writer.close()
        assert await self._rejected("slow") == before + 1

    async def slow_reader(self) -> None:
        """A client that takes nothing of a large answer."""
        before = await self._rejected("slow")
        body = b"\n".join(b'{"text": "%s"}' % (b"x" * 100_000) for _ in range(120))
        reader, writer = await asyncio.open_connection(*self.client.address, limit=1)
        writer.write(b"POST /scenarios/one/predict/batch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        while await self._rejected("slow") == before:
            await asyncio.sleep(0.1)
        writer.transport.abort()
        del reader

    async def _rejected(self, reason: str) -> float:
        metrics = (await self.client.ask("/metrics")).body.decode()
        found = re.search(rf'scenarium_rejected_total{{reason="{reason}"}} (\S+)', metrics)
        return float(found[1]) if found else 0.0

    # ── faults of operators and of the machine ────────────────────────────────────────────────────────────────────────

    async def reload(self) -> None:
        """Other settings for all workers."""
        threads = self.rng.randrange(1, 1000)
        tables = [f"[scenarios.{name}.serve]\nworkers = {count}\nthreads = {threads}\n" for name, count in WORKERS.items()]
        (self.lab.folder / "scenarios.toml").write_text("".join(tables))
        before = {name: {worker["pid"] for worker in await self._workers(name)} for name in WORKERS}
        self.gateway.popen.send_signal(signal.SIGHUP)
        for name, pids in before.items():
            while pids & {worker["pid"] for worker in await self._workers(name)}:
                await asyncio.sleep(0.02)
            await self._well(name)

    async def promote(self) -> None:
        """Another version."""
        name = self.rng.choice(list(WORKERS))
        versions = self.lab.store.versions(name)
        number = self.rng.choice([each for each in versions if each != self.lab.store.resolve(name)])
        self.lab.store.set_alias(name, PRODUCTION, number, "benchmark")
        await self._served(name, number)

    async def rollback(self) -> None:
        """The version before, where there was one."""
        name = self.rng.choice(list(WORKERS))
        number = self.lab.store.previous(name) or self.lab.store.resolve(name)
        self.lab.store.set_alias(name, PRODUCTION, number, "benchmark", action="rollback")
        await self._served(name, number)

    async def _served(self, name: str, number: int) -> None:
        while (await self.client.ask(f"/scenarios/{name}")).json["version"] != number:
            await asyncio.sleep(0.02)
        await self._well(name)

    async def eviction(self) -> None:
        """A request to a scenario that has no room beside the one that was asked last."""
        idle = [name for name in SPARE if await self._state(name) == "idle"]
        assert idle, "the memory budget holds them all"
        name = self.rng.choice(idle)
        await self.load.predict("eviction", self.client, name, {})
        assert any([await self._state(each) == "idle" for each in SPARE if each != name])

    async def _have_a_spare(self) -> None:
        """A reload needs the room of the spare scenario; load one again, so that memory is compared like with like."""
        if not [name for name in SPARE if await self._state(name) == "ready"]:
            await self.load.predict("spare", self.client, SPARE[0], {})

    async def _state(self, name: str) -> str:
        return str((await self.client.ask(f"/scenarios/{name}")).json["state"])

    async def full_disk(self) -> float:
        """No byte more for jobs, audit log and store, for three seconds; returns how long it took from then on."""
        pid = self.gateway.popen.pid
        with self._window("", NO_JOBS), self._full():
            until = time.monotonic() + 3
            while time.monotonic() < until:
                answer = await self.client.ask("/scenarios/one/predict", b'{"text": "full"}')
                assert answer.status == 200, answer
                await asyncio.sleep(0.1)
            if self.disk:
                await self._refused_promote()
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        since = time.monotonic()
        with self._window("", NO_JOBS):
            while (await self.client.ask("/scenarios/one/jobs", b'{"text": "again"}')).status != 202:
                await asyncio.sleep(0.05)
        return time.monotonic() - since

    async def _refused_promote(self) -> None:
        before = self.lab.store.resolve("one")
        try:
            self.lab.store.set_alias("one", PRODUCTION, before, "x" * 10_000)
        except (ScenariumError, OSError):
            assert self.lab.store.resolve("one") == before
        else:
            raise AssertionError("an alias was written to a full disk")

    @contextlib.contextmanager
    def _full(self) -> Iterator[None]:
        if self.disk is None:
            resource.prlimit(self.gateway.popen.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
            yield
            return
        filler = self.disk / "filler"
        try:
            with open(filler, "wb") as file:
                size, step = 0, 64 << 20
                while step >= PAGE:
                    try:
                        os.posix_fallocate(file.fileno(), size, step)
                    except OSError:
                        step //= 2
                    else:
                        size += step
            yield
        finally:
            filler.unlink()

    # ── whether all is well ───────────────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _window(self, scenario: str, code: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.windows.append(Window(scenario, began, time.monotonic() + 1, code))

    async def _workers(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.client.ask(f"/scenarios/{name}")).json["workers"]
        return found

    async def _well(self, name: str, without: int = 0) -> None:
        """Wait until all workers of a scenario are there, and one answers."""
        while True:
            ready = [worker for worker in await self._workers(name) if worker["ready"] and worker["pid"] != without]
            if len(ready) == WORKERS[name]:
                break
            await asyncio.sleep(0.02)
        await self.load.predict("probe", self.client, name, {})

    def others(self) -> list[Failed]:
        """Failed requests that no fault was aimed at."""

        def victim(failed: Failed) -> bool:
            return any(
                w.code == failed.code and w.scenario in ("", failed.scenario) and failed.began <= w.ended and w.began <= failed.ended for w in self.windows
            ) and (failed.code != DIED or failed.scenario == IMPURE or failed.kind == "stream")

        return [failed for failed in self.load.failed if not victim(failed)]
