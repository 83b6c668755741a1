"""A body of 1 MB through a worker: what it adds at one client over plain FastAPI, which reads it in its handler.

python -m benchmarks.gateway_body [--rounds 5] [--seconds 3]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

import numpy as np

from benchmarks import load, results
from benchmarks.load import OURS, SERVERS, Server

PACKAGES = ("fastapi", "starlette", "uvicorn", "uvloop")
BODY = np.random.default_rng(0).bytes(1_000_000)


def right(answer: Any) -> bool:
    """Whether all has come."""
    return bool(answer["size"] == len(BODY))


def figures(rounds: int = 5, seconds: float = 3) -> list[results.Figure]:
    """Measure."""
    with load.scratch() as folder:
        ours = load.Ours(folder, "size", str(SERVERS / "size_plugin.py"))
        ours.train()
        fastapi = Server("FastAPI", [sys.executable, str(SERVERS / "size_fastapi.py"), "{port}"])
        own = ours.server()
        headers = load.json_headers(ours.key) | {"Content-Type": "application/octet-stream"}
        with load.running([fastapi, own], BODY, right, headers) as servers:
            found = load.measure(servers, (1,), rounds, seconds, headers)
    added = [(own.p50_us - plain.p50_us) / 1000 for own, plain in zip(found[OURS, 1], found["FastAPI", 1], strict=True)]
    made = [results.figure("1 MB body through a worker: p50 over plain FastAPI", load.summary("added p50 of 1 MB, ms", added), "ms", "lower", 3, 1)]
    for name in ("FastAPI", OURS):
        made.append(results.figure(f"1 MB body, p50: {name}", statistics.median(x.p50_us for x in found[name, 1]) / 1000, "ms", "lower"))
    return made


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    made = figures(options.rounds, options.seconds)
    results.show(made)
    results.write("gateway", made, PACKAGES)


if __name__ == "__main__":
    main()
