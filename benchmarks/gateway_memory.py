"""Scenarios that come and go within a memory budget: what stays behind of unload and load, and what is asked of whom under Zipf's law.

``python -m benchmarks.gateway_memory [--cycles 50]``. The scenarios are small BERT models, each with its own weights. The budget is set from what
a gateway without one holds: its base, and a number of models.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks import many_scenarios, results
from scenarium.gateway.memory import measure

SERVE = """
import json, sys
from scenarium.core.config import GatewayConfig
from scenarium.core.registry import Plugin, Registry
from scenarium.core.settings import Settings
from scenarium.core.store import Store
from scenarium.gateway.server import serve
plugin, store, sets, *names = sys.argv[1:]
registry = Registry(Settings.read(environ={}, sets=json.loads(sets)), {name: Plugin(name, plugin, "small-bert", "0.1.0") for name in names})
serve(registry, Store(store), registry.settings.validate(GatewayConfig, ("gateway",), "gateway"))
"""
MB = 1 << 20
SCENARIOS, FIT = 8, 3
WARM_CYCLES = 5
"""Cycles before the one from which growth is counted: caches of the first loads are no leak."""


class Gateway(many_scenarios.Gateway):
    """A gateway's process with settings of its own."""

    def __init__(self, names: list[str], folder: Path, *sets: str) -> None:
        self.began = time.monotonic()
        own = ["gateway.port=0", "gateway.jobs=null", *sets]
        command = [sys.executable, "-c", SERVE, str(many_scenarios.PLUGIN), str(folder / "store"), json.dumps(own), *names]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.events = []
        threading.Thread(target=self._read, daemon=True).start()
        self.client = httpx.Client(base_url=self.event("listening")["url"], timeout=60)

    def metric(self, line: str) -> float:
        """One value of ``/metrics``."""
        found = [each for each in self.client.get("/metrics").text.splitlines() if each.startswith(line + " ")]
        return float(found[0].rpartition(" ")[2])

    def tree_mb(self) -> float:
        """The whole process tree, as the budget counts it."""
        held = measure(self.process.pid)
        status = self.client.get("/admin/status").json()["scenarios"]
        workers = [worker["pid"] for scenario in status for worker in scenario["workers"] if worker["pid"] in held]
        return (sum(each.own for each in held.values()) + sum(held[pid].files for pid in workers)) / MB

    def worker_mb(self, name: str) -> float:
        """What comes back when a scenario's worker ends."""
        pid = self.client.get(f"/scenarios/{name}").json()["workers"][0]["pid"]
        return measure(pid)[pid].uss / MB

    def end(self) -> None:
        """Stop it, cleanly."""
        self.process.terminate()
        assert self.process.wait(60) == 0


def sizes(names: list[str], folder: Path) -> tuple[float, float]:
    """MiB of a gateway and its zygotes, and of one worker on top of them."""
    gateway = Gateway(names[:2], folder)
    try:
        for name in names[:2]:
            gateway.event("worker_ready", scenario=name)
            gateway.ask(name)
        models = [gateway.worker_mb(name) for name in names[:2]]
        return gateway.tree_mb() - sum(models), max(models)
    finally:
        gateway.end()


def cycle(names: list[str], folder: Path, budget: float, cycles: int) -> tuple[list[float], list[float]]:
    """MiB of the process tree after each cycle (either scenario is loaded in the other's place), and the seconds of each load."""
    gateway = Gateway(names, folder, f"gateway.memory_budget={int(budget * MB)}", "gateway.residence_s=0")
    held, took = [], []
    try:
        gateway.event("worker_ready")
        for _ in range(cycles):
            for name in names:
                began = time.monotonic()
                gateway.ask(name)
                took.append(time.monotonic() - began)
            until(lambda: gateway.metric(f'scenarium_state{{scenario="{names[0]}",state="idle"}}') == 1)
            held.append(gateway.tree_mb())
        assert gateway.metric(f'scenarium_evictions_total{{scenario="{names[0]}"}}') >= cycles - 1
    finally:
        gateway.end()
    return held, took


def zipf(names: list[str], folder: Path, budget: float, requests: int = 400) -> tuple[int, float, float]:
    """Errors, the largest share of the budget that was used (sampled), and evictions, where the n-th scenario is asked 1/n as often as the first."""
    gateway = Gateway(names, folder, f"gateway.memory_budget={int(budget * MB)}")
    asked = random.Random(0).choices(names, [1 / rank for rank in range(1, len(names) + 1)], k=requests)

    def ask(name: str) -> int:
        return gateway.client.post(f"/scenarios/{name}/predict", json={"text": "请点击链接领取"}).status_code

    try:
        gateway.event("worker_ready")
        with sampled(gateway) as most, ThreadPoolExecutor(8) as pool:
            errors = sum(status != 200 for status in pool.map(ask, asked))
        evictions = sum(gateway.metric(f'scenarium_evictions_total{{scenario="{name}"}}') for name in names)
        return errors, max(most) / budget, evictions
    finally:
        gateway.end()


@contextmanager
def sampled(gateway: Gateway) -> Iterator[list[float]]:
    """Memory of the process tree every 50 ms, until the end of the block: the smaller of two readings. One reads process after process, and where a
    fork ends meanwhile, the pages that it shared count a second time for those that are read after it."""
    found, over = [gateway.tree_mb()], threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            found.append(min(gateway.tree_mb(), gateway.tree_mb()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def until(condition: Callable[[], bool]) -> None:
    """Wait until it is true, at most 60 s."""
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("it did not come true in time")
        time.sleep(0.02)


def figures(cycles: int = 50) -> list[results.Figure]:
    """Measure."""
    names = [f"bert{number}" for number in range(SCENARIOS)]
    with tempfile.TemporaryDirectory(prefix="scenarium-bench-") as path:
        folder = Path(path)
        many_scenarios.train(names, folder)
        base, model = sizes(names, folder)
        print(f"gateway and zygotes {base:.0f} MiB, one worker {model:.1f} MiB")
        held, took = cycle(names[:2], folder, base + 1.6 * model, cycles)
        for number in range(0, cycles, 10):
            print(f"cycle {number + 1:>3}: {held[number]:.1f} MiB")
        print(f"cycle {cycles:>3}: {held[-1]:.1f} MiB")
        errors, share, evictions = zipf(names, folder, base + (FIT + 0.6) * model)
    what = f"gateway: {SCENARIOS} models, budget for {FIT}, Zipf"
    return [
        results.figure(
            f"gateway: {cycles} unload/load cycles, growth of the process tree", max(held[WARM_CYCLES:]) - held[WARM_CYCLES - 1], "MB", "lower", 5, 0
        ),
        results.figure("gateway: a request to an idle scenario is answered after", statistics.median(took), "s", "lower"),
        results.figure(f"{what}: errors", errors, "requests", "lower", 0, 0),
        results.figure(f"{what}: memory over budget", max(0.0, 100 * (share - 1)), "%", "lower", 10, 0),
        results.figure(f"{what}: evictions", evictions, "", "lower"),
    ]


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=50)
    made = figures(parser.parse_args().cycles)
    results.show(made)
    results.write("gateway", made, many_scenarios.PACKAGES)


if __name__ == "__main__":
    main()
