"""Batching of a model whose batch of n costs a + b · n, with a = 10 ms and b = 0.2 ms, at 64 clients; beside the same without batches.

The analytic optimum. C clients each ask again when they are answered, so at most C requests wait, and no batch is larger than C. A batch of n
gives n / (a + b · n) answers a second, which grows with n: no policy gives more than C / (a + b · C), all clients in every batch and nothing
else taking any time: 64 / 22.8 ms = 2807 a second. Without batches it is 1 / (a + b) = 98. A worker that takes what waits as soon as it is free
finds the clients in two halves, one in the worker while the other waits: C / (2 · a + b · C) = 1951. With ``max_delay_ms`` a free worker
waits for the others to come back, and all are in one batch; what then separates it from the optimum is the time that answering 64 requests and
reading the next 64 takes, which no batch overlaps.

    python -m benchmarks.gateway_batching [--rounds 4] [--seconds 4]
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from benchmarks import load, results
from benchmarks.load import SERVERS

CLIENTS, FIXED_S, EACH_S = 64, 0.010, 0.0002
OPTIMUM = CLIENTS / (FIXED_S + EACH_S * CLIENTS)
HALVES = CLIENTS / (2 * FIXED_S + EACH_S * CLIENTS)
PACKAGES = ("starlette", "uvicorn", "uvloop", "pydantic")
WAYS: dict[str, dict[str, float]] = {"unbatched": {"max_batch_size": 1}, "batched": {}, "max_delay_ms=5": {"max_delay_ms": 5}}


def right(answer: Any) -> bool:
    """Whether it is one more."""
    return bool(answer["y"] == 3)


def figures(rounds: int = 4, seconds: float = 4) -> list[results.Figure]:
    """Measure."""
    with load.scratch() as folder:
        ours = load.Ours(folder, "cost", str(SERVERS / "cost_plugin.py"))
        ours.train()
        servers = [ours.server(name, **settings) for name, settings in WAYS.items()]
        headers = load.json_headers(ours.key)
        with load.running(servers, load.json_body({"x": 2}), right, headers) as up:
            found = load.measure(up, (CLIENTS,), rounds, seconds, headers)
    rates = {name: [load.answered(each, seconds) for each in found[name, CLIENTS]] for name in WAYS}
    title = "batching, cost 10 ms + 0.2 ms · n, 64 clients"
    gain = load.summary("batched against unbatched", [a / b for a, b in zip(rates["batched"], rates["unbatched"], strict=True)])
    halves = load.summary("batched, share of the optimum of a worker that never waits", [rate / HALVES for rate in rates["batched"]])
    whole = load.summary("max_delay_ms=5, share of the analytic optimum", [rate / OPTIMUM for rate in rates["max_delay_ms=5"]])
    made = [
        results.figure(f"{title}: against unbatched", gain, "times", "higher", 8),
        results.figure(f"{title}: share of the optimum without waiting, C / (2a + bC)", halves, "", "higher", None, 0.9),
        results.figure(f"{title}: share of the analytic optimum, C / (a + bC), with max_delay_ms = 5", whole, "", "higher", None, 0.9),
    ]
    for name, values in rates.items():
        made.append(results.figure(f"{title}, requests/s: {name}", statistics.median(values), "1/s", "higher"))
    return made


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4)
    options = parser.parse_args()
    made = figures(options.rounds, options.seconds)
    results.show(made)
    results.write("gateway", made, PACKAGES)


if __name__ == "__main__":
    main()
