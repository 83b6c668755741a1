"""The gateway beside plain FastAPI and LitServe on a toy model: p50 at one client, requests a second at 32.

All servers run at once on the same cores, and the load goes round them in turns, so that whatever else the machine does falls on
all alike. Load comes from ``wrk`` (``apt-get install wrk``), LitServe from a venv of its own (``benchmarks/peers.txt``).

    python -m benchmarks.gateway_toy [--rounds 5] [--seconds 3] [--litserve .venv-bench/bin/python]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx

from benchmarks import results

ROOT = Path(__file__).parent
SERVERS = ROOT / "servers"
BODY = json.dumps({"features": [round(i / 64, 4) for i in range(64)]})
PACKAGES = ("fastapi", "starlette", "uvicorn", "pydantic", "numpy")
UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


class Load(NamedTuple):
    """What ``wrk`` measured."""

    p50_us: float
    per_second: float
    errors: int


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wrk(url: str, clients: int, seconds: float, script: Path) -> Load:
    """One window of load."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}", "--latency", "-s", str(script), url]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    half = re.search(r"50%\s+([\d.]+)(us|ms|s)", out)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    assert half is not None, out
    assert rate is not None, out
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    return Load(float(half[1]) * UNITS[half[2]], float(rate[1]), int(wrong[1]) if wrong else 0)


def train_toy(folder: Path) -> None:
    """A version of the toy scenario by the ordinary pipeline."""
    from scenarium.core import pipeline
    from scenarium.core.registry import Plugin, Registry
    from scenarium.core.settings import Settings
    from scenarium.core.store import Store

    registry = Registry(Settings.read(environ={}), {"toy": Plugin("toy", str(SERVERS / "toy_plugin.py"), "toy", "0.1.0")})
    trained = pipeline.train(registry.scenario("toy"), Store(str(folder / "store")), folder / "runs")
    assert trained.became_production


SERVE = """
import sys
from scenarium.core.config import GatewayConfig
from scenarium.core.registry import Plugin, Registry
from scenarium.core.settings import Settings
from scenarium.core.store import Store
from scenarium.gateway.server import serve
registry = Registry(Settings.read(environ={}), {"toy": Plugin("toy", sys.argv[1], "toy", "0.1.0")})
serve(registry, Store(sys.argv[2]), GatewayConfig(port=int(sys.argv[3])))
"""


@contextlib.contextmanager
def running(litserve: str | None) -> Iterator[dict[str, str]]:
    """All servers, by name their URL, once each answers."""
    folder = Path(tempfile.mkdtemp(prefix="scenarium-bench-"))
    train_toy(folder)
    ports = [free_port() for _ in range(3)]
    commands = {
        "FastAPI": ([sys.executable, str(SERVERS / "toy_fastapi.py"), str(ports[0])], f"http://127.0.0.1:{ports[0]}/predict"),
        "scenarium": (
            [sys.executable, "-c", SERVE, str(SERVERS / "toy_plugin.py"), str(folder / "store"), str(ports[1])],
            f"http://127.0.0.1:{ports[1]}/scenarios/toy/predict",
        ),
    }
    if litserve:
        commands["LitServe"] = ([litserve, str(SERVERS / "toy_litserve.py"), str(ports[2])], f"http://127.0.0.1:{ports[2]}/predict")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = []
    try:
        for command, _ in commands.values():
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True))
        for name, (_, url) in commands.items():
            wait_until_it_answers(name, url)
        yield {name: url for name, (_, url) in commands.items()}
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
        time.sleep(1)
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_it_answers(name: str, url: str) -> None:
    """Wait for a right answer."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.post(url, content=BODY, headers={"Content-Type": "application/json"}, timeout=5)
            if answer.status_code == 200 and answer.json()["label"] in ("calm", "alarm"):
                return
        time.sleep(0.2)
    raise SystemExit(f"{name} did not answer at {url}")


def figures(rounds: int = 5, seconds: float = 3, litserve: str | None = None) -> list[results.Figure]:
    """Run the rounds; LitServe only where a Python that has it is given."""
    with running(litserve) as servers, tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method = 'POST'\nwrk.body = '{BODY}'\nwrk.headers['Content-Type'] = 'application/json'\n")
        script.flush()
        found = measure(servers, rounds, seconds, Path(script.name))
    # Differences and ratios within a round, since the machine is the same only there; then the median over the rounds.
    each = range(rounds)
    added = statistics.median(found["scenarium", 1][r].p50_us - found["FastAPI", 1][r].p50_us for r in each)
    made = [
        results.figure("gateway: p50 at one client, over plain FastAPI", added, "µs", "lower", 100, 50),
        results.figure("gateway: requests/s at 32 clients, against plain FastAPI", ratio(found, "FastAPI", each), "times", "higher", 1.2, 1.6),
    ]
    if litserve:
        made.append(results.figure("gateway: requests/s at 32 clients, against LitServe", ratio(found, "LitServe", each), "times", "higher", 5, 8))
    for name in servers:
        made.append(results.figure(f"{name}: p50 at one client", statistics.median(x.p50_us for x in found[name, 1]), "µs", "lower"))
        made.append(results.figure(f"{name}: requests/s at 32 clients", statistics.median(x.per_second for x in found[name, 32]), "1/s", "higher"))
    return made


def measure(servers: dict[str, str], rounds: int, seconds: float, script: Path) -> dict[tuple[str, int], list[Load]]:
    """The load of each round, by server and number of clients."""
    found: dict[tuple[str, int], list[Load]] = {}
    for number in range(rounds + 1):
        for clients in (1, 32):
            for name, url in servers.items():
                load = wrk(url, clients, seconds if number else 1, script)
                if number:  # the first round warms up
                    found.setdefault((name, clients), []).append(load)
                    figures = f"p50 {load.p50_us:8.0f} µs  {load.per_second:8.0f}/s  {load.errors} errors"
                    print(f"round {number}  {name:10} {clients:3} clients  {figures}", flush=True)
    return found


def ratio(found: dict[tuple[str, int], list[Load]], peer: str, rounds: range) -> float:
    """Our requests a second over the peer's, at 32 clients."""
    return statistics.median(found["scenarium", 32][r].per_second / found[peer, 32][r].per_second for r in rounds)


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT.parent / ".venv-bench" / "bin" / "python"
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--litserve", default=str(default) if default.exists() else None, help="a Python that has the packages of benchmarks/peers.txt")
    options = parser.parse_args()
    made = figures(options.rounds, options.seconds, options.litserve)
    results.show(made)
    results.write("spine", made, PACKAGES)


if __name__ == "__main__":
    main()
