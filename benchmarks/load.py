"""What the gateway's benchmarks share: server processes beside each other, load from ``wrk`` (``apt-get install wrk``), rounds in turn.

All servers of one comparison run at once on the same cores, and the load goes round them in turns, so that whatever else the machine
does falls on all alike. Ratios and differences are taken within a round; the median over the rounds counts, with the spread beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from scenarium.gateway.keys import KeyFile, Rate

if TYPE_CHECKING:
    from scenarium.core.registry import Scenario
    from scenarium.core.store import Store

ROOT = Path(__file__).parent
SERVERS = ROOT / "servers"
OURS = "scenarium"
UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


class Load(NamedTuple):
    """What ``wrk`` measured."""

    p50_us: float
    per_second: float
    errors: int


@dataclass(frozen=True)
class Server:
    """One server of a comparison."""

    name: str
    command: Sequence[str]
    """``{port}`` in it is replaced by a free port."""
    path: str = "/predict"
    body: bytes | None = None
    """Where it wants another body than the others."""
    environment: Mapping[str, str] = field(default_factory=dict)
    patience_s: float = 60


class Running(NamedTuple):
    """A server that answers."""

    url: str
    body: bytes
    pid: int


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="scenarium-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Ours:
    """Our gateway in front of one scenario, with a key that has a rate and a quota: everything on."""

    def __init__(self, folder: Path, name: str, plugin: str, distribution: str = "benchmark") -> None:
        self.folder = folder
        self.scenario, self.plugin, self.distribution = name, plugin, distribution
        self.keys = folder / "keys.sqlite"
        _, self.key = KeyFile(self.keys).create(rate=Rate(10**9, 60), daily=10**9)

    @property
    def store(self) -> Store:
        """Where its versions are."""
        from scenarium.core.store import Store

        return Store(str(self.folder / "store"))

    def found(self, *sets: str) -> Scenario:
        """The scenario with these settings."""
        from scenarium.core.registry import Plugin, Registry
        from scenarium.core.settings import Settings

        settings = Settings.read(environ={}, sets=sets, scenario=self.scenario)
        return Registry(settings, {self.scenario: Plugin(self.scenario, self.plugin, self.distribution, "0.1.0")}).scenario(self.scenario)

    def train(self, *sets: str) -> Path:
        """A production version by the ordinary pipeline; its folder."""
        from scenarium.core import pipeline
        from scenarium.core.store import PRODUCTION

        trained = pipeline.train(self.found(*sets), self.store, self.folder / "runs")
        if not trained.became_production:  # it is no better than its floor; what is measured is its time
            self.store.set_alias(self.scenario, PRODUCTION, trained.version.number, "benchmark")
        return trained.version.folder

    def server(self, name: str = OURS, **serve: float) -> Server:
        """The gateway with these settings of the section ``serve``."""
        sets = [f"{key}={value}" for key, value in serve.items()]
        script = str(SERVERS / "serve_scenario.py")
        command = [sys.executable, script, "{port}", str(self.folder / "store"), str(self.keys), self.scenario, self.plugin, self.distribution, *sets]
        return Server(name, command, f"/scenarios/{self.scenario}/predict")


@contextlib.contextmanager
def running(servers: Sequence[Server], body: bytes, right: Callable[[Any], bool], headers: Mapping[str, str]) -> Iterator[dict[str, Running]]:
    """All servers by name, once each has given a right answer. Each ends with all that it started, on SIGTERM too."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    started: list[subprocess.Popen[bytes]] = []
    found: dict[str, Running] = {}
    with scratch() as folder:
        try:
            for server in servers:
                port = free_port()
                command = [part.replace("{port}", str(port)) for part in server.command]
                environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT.parent)} | dict(server.environment)
                with (folder / f"{server.name}.log").open("wb") as log:
                    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
                started.append(process)
                found[server.name] = Running(f"http://127.0.0.1:{port}{server.path}", server.body or body, process.pid)
            for server, process in zip(servers, started, strict=True):
                try:
                    wait_until_it_answers(found[server.name], right, headers, server.patience_s, process)
                except TimeoutError as fault:
                    print((folder / f"{server.name}.log").read_text(errors="replace")[-3000:])
                    raise SystemExit(f"{server.name}: {fault}") from None
            yield found
        finally:
            for process in started:
                end(process)
            signal.signal(signal.SIGTERM, before)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server and every process below it, some of which it leaves behind."""
    below = descendants(process.pid)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    for pid, began in below.items():
        if _began(pid) == began:  # the same process still, not another with its number
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()


def descendants(pid: int) -> dict[int, str]:
    """Every process below one, with its start time."""
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        each = waiting.pop()
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                for child in map(int, (task / "children").read_text().split()):
                    if child not in found:
                        found[child] = _began(child)
                        waiting.append(child)
    return found


def _began(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def wait_until_it_answers(server: Running, right: Callable[[Any], bool], headers: Mapping[str, str], patience: float, process: subprocess.Popen[bytes]) -> None:
    """Wait for a right answer.

    Raises:
        TimeoutError: there was none.
    """
    until = time.monotonic() + patience
    last = "no answer"
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.post(server.url, content=server.body, headers=headers, timeout=20)
            last = f"{answer.status_code} {answer.text[:500]}"
            if answer.status_code == 200 and right(answer.json()):
                return
        time.sleep(0.2)
    raise TimeoutError(f"no right answer at {server.url}: {last}")


def wrk(server: Running, clients: int, seconds: float, headers: Mapping[str, str]) -> Load:
    """One window of closed-loop load."""
    with tempfile.TemporaryDirectory() as name:
        body, script = Path(name) / "body", Path(name) / "load.lua"
        body.write_bytes(server.body)
        lines = ["wrk.method = 'POST'", f"local file = io.open('{body}', 'rb')", "wrk.body = file:read('*a')", "file:close()"]
        script.write_text("\n".join([*lines, *(f"wrk.headers['{key}'] = '{value}'" for key, value in headers.items())]))
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}", "--timeout", "30", "--latency", "-s", str(script), server.url]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    half = re.search(r"50%\s+([\d.]+)(us|ms|s)", out)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    assert half is not None, out
    assert rate is not None, out
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    lost = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    errors = (int(wrong[1]) if wrong else 0) + (sum(map(int, lost.groups())) if lost else 0)
    return Load(float(half[1]) * UNITS[half[2]], float(rate[1]), errors)


Found = dict[tuple[str, int], list[Load]]


def measure(servers: Mapping[str, Running], clients: Sequence[int], rounds: int, seconds: float, headers: Mapping[str, str]) -> Found:
    """The load of each round, by server and number of clients. A shorter round before the first warms up."""
    found: Found = {}
    for number in range(rounds + 1):
        for count in clients:
            for name, server in servers.items():
                load = wrk(server, count, seconds if number else min(seconds, 2), headers)
                if number:
                    found.setdefault((name, count), []).append(load)
                    print(f"round {number}  {name:12} {count:3} clients  p50 {load.p50_us:8.0f} µs  {load.per_second:8.1f}/s  {load.errors} errors", flush=True)
    return found


def answered(load: Load, seconds: float) -> float:
    """Requests a second that got an answer and no error."""
    return load.per_second - load.errors / seconds


def summary(what: str, values: Sequence[float]) -> float:
    """The median, printed with its spread."""
    middle = statistics.median(values)
    print(f"{what}: median {middle:.4g}, from {min(values):.4g} to {max(values):.4g} in {len(values)} rounds", flush=True)
    return middle


def json_headers(key: str) -> dict[str, str]:
    """What every request to every server carries; only ours reads the key."""
    return {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}


def json_body(value: Any) -> bytes:
    """A request body."""
    return json.dumps(value).encode()
