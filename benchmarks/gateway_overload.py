"""Overload: requests at three times the capacity, whether or not they are answered; what is still answered, and how soon the rest is refused.

The model is that of ``gateway_batching`` with batches of 16 at most: a worker gives 16 / 13.2 ms = 1212 a second. The capacity is what 64 clients
in a closed loop get in the same round. Goodput is what was answered with 200 in the time in which requests were sent. A refusal's time runs from
the write of the request to the last byte of the 503, 429 being for keys that have used up their rate. The load's own ceiling is measured on a
server that parses nothing.

    python -m benchmarks.gateway_overload [--rounds 4] [--seconds 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import load, results
from benchmarks.gateway_batching import PACKAGES, right
from benchmarks.load import OURS, SERVERS, Running, Server

BATCH, CLIENTS, TIMES = 16, 64, 3


def open_loop(server: Running, rate: float, seconds: float, headers: dict[str, str], folder: Path) -> dict[str, Any]:
    """What came of requests at this rate."""
    (folder / "body").write_bytes(server.body)
    command = [sys.executable, "-m", "benchmarks.open_loop", server.url, str(rate), str(seconds), str(folder / "body")]
    run = subprocess.run([*command, *(f"{k}={v}" for k, v in headers.items())], capture_output=True, check=True, cwd=load.ROOT.parent)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def figures(rounds: int = 4, seconds: float = 5) -> list[results.Figure]:
    """Measure."""
    shares, refused, accepted, late = [], [], [], []
    with load.scratch() as folder:
        ours = load.Ours(folder, "cost", str(SERVERS / "cost_plugin.py"))
        ours.train()
        own = ours.server(max_batch_size=BATCH, workers=1)
        headers = load.json_headers(ours.key)
        bare = Server("ceiling", [sys.executable, str(SERVERS / "fixed.py"), "{port}"])
        with load.running([own, bare], load.json_body({"x": 2}), lambda answer: "label" in answer or right(answer), headers) as up:
            load.wrk(up[OURS], CLIENTS, 2, headers)
            for number in range(rounds):
                capacity = load.wrk(up[OURS], CLIENTS, seconds, headers).per_second
                told = open_loop(up[OURS], TIMES * capacity, seconds, headers, folder)
                good, no = told["answers"]["200"], told["answers"]["503"]
                assert set(told["answers"]) == {"200", "503"}, told
                assert not told["broken"] + told["unanswered"], told
                print(f"round {number + 1}  capacity {capacity:.0f}/s, sent {told['sent'] / told['seconds']:.0f}/s, {json.dumps(told)}", flush=True)
                shares.append(100 * good["during"] / told["seconds"] / capacity)
                refused.append(no["ms"])
                accepted.append(good["ms"])
                late.append(told["late_ms"]["p99"])
            most = open_loop(up["ceiling"], 50_000, 2, headers, folder)
    title = "overload, open loop at 3 times capacity"
    return [
        results.figure(f"{title}: goodput, share of capacity", load.summary("goodput, %", shares), "%", "higher", 90, 95),
        results.figure(f"{title}: time to refuse, p50", load.summary("refusal p50, ms", [each["p50"] for each in refused]), "ms", "lower", 5),
        results.figure(f"{title}: time to refuse, p99", load.summary("refusal p99, ms", [each["p99"] for each in refused]), "ms", "lower", 5),
        results.figure(f"{title}: time to answer what was accepted, p99", statistics.median(each["p99"] for each in accepted), "ms", "lower"),
        results.figure(f"{title}: lateness of the load against its schedule, p99", statistics.median(late), "ms", "lower"),
        results.figure(f"{title}: most that the load can send", most["sent"] / most["seconds"], "1/s", "higher"),
    ]


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    made = figures(options.rounds, options.seconds)
    results.show(made)
    results.write("gateway", made, PACKAGES)


if __name__ == "__main__":
    main()
