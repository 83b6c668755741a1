"""24 small BERT scenarios, each in its own worker: time until all are ready, memory in all, and the return of a killed worker.

python -m benchmarks.many_scenarios [--scenarios 24]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks import results

PACKAGES = ("torch", "transformers", "starlette", "uvicorn")
PLUGIN = Path(__file__).parent / "servers" / "bert_plugin.py"

SERVE = """
import sys
from scenarium.core.config import GatewayConfig
from scenarium.core.registry import Plugin, Registry
from scenarium.core.settings import Settings
from scenarium.core.store import Store
from scenarium.gateway.server import serve
plugins = {name: Plugin(name, sys.argv[1], "small-bert", "0.1.0") for name in sys.argv[3:]}
serve(Registry(Settings.read(environ={}), plugins), Store(sys.argv[2]), GatewayConfig(port=0))
"""


def train(names: list[str], folder: Path) -> None:
    """A version of each scenario by the ordinary pipeline."""
    from scenarium.core import pipeline
    from scenarium.core.registry import Plugin, Registry
    from scenarium.core.settings import Settings
    from scenarium.core.store import Store

    registry = Registry(Settings.read(environ={}), {name: Plugin(name, str(PLUGIN), "small-bert", "0.1.0") for name in names})
    for name in names:
        pipeline.train(registry.scenario(name), Store(str(folder / "store")), folder / "runs")


class Gateway:
    """The gateway's process and its log."""

    def __init__(self, names: list[str], folder: Path) -> None:
        self.began = time.monotonic()
        command = [sys.executable, "-c", SERVE, str(PLUGIN), str(folder / "store"), *names]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.events: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()
        self.client = httpx.Client(base_url=self.event("listening")["url"], timeout=60)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.events.append(json.loads(line))

    def event(self, what: str, **match: Any) -> dict[str, Any]:
        """The first such line of the log, now or later."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for entry in list(self.events):
                if entry["event"] == what and match.items() <= entry.items():
                    return entry
            time.sleep(0.005)
        raise SystemExit(f"no {what} in the log: {self.events[-3:]}")

    def ask(self, name: str) -> None:
        """One prediction, which must succeed."""
        answer = self.client.post(f"/scenarios/{name}/predict", json={"text": "请点击链接领取"})
        assert answer.status_code == 200, answer.text

    def processes(self) -> list[int]:
        """The gateway, its zygotes and its workers."""
        found = [self.process.pid]
        for pid in found:
            found += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return found

    def pss_gb(self) -> float:
        """Sum of the proportional set sizes of all its processes."""
        total = 0
        for pid in self.processes():
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total * 1024 / 1e9

    def returns_after(self, name: str) -> tuple[float, float]:
        """Seconds from the SIGKILL of a worker to its next answer, and of these the loading of its version."""
        pid = self.client.get(f"/scenarios/{name}").json()["workers"][0]["pid"]
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        self.ask(name)
        seconds = time.monotonic() - began
        worker = self.client.get(f"/scenarios/{name}").json()["workers"][0]["pid"]
        return seconds, self.event("worker_ready", scenario=name, pid=worker)["load_ms"] / 1000


def figures(scenarios: int = 24) -> list[results.Figure]:
    """Measure."""
    names = [f"bert{number}" for number in range(scenarios)]
    with tempfile.TemporaryDirectory(prefix="scenarium-bench-") as path:
        train(names, Path(path))
        gateway = Gateway(names, Path(path))
        try:
            for name in names:
                gateway.event("worker_ready", scenario=name)
            ready = time.monotonic() - gateway.began
            for name in names:
                gateway.ask(name)
            pss = gateway.pss_gb()
            returns = [gateway.returns_after(name) for name in names[:5]]
        finally:
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.process.wait(60) == 0
    return [
        results.figure(f"gateway: {scenarios} small BERT workers ready after", ready, "s", "lower", 10),
        results.figure(f"gateway: {scenarios} small BERT workers, sum of PSS", pss, "GB", "lower", 1.5),
        results.figure("gateway: a killed worker answers after, without loading", statistics.median(a - b for a, b in returns), "s", "lower", 0.5),
        results.figure("gateway: loading of a killed worker's version", statistics.median(b for _, b in returns), "s", "lower"),
    ]


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", type=int, default=24)
    made = figures(parser.parse_args().scenarios)
    results.show(made)
    results.write("spine", made, PACKAGES)


if __name__ == "__main__":
    main()
