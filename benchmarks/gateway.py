"""All figures of the gateway, one benchmark after another: ``make bench-gateway``, or ``python -m benchmarks.gateway gateway_toy``.

Each benchmark runs in a process of its own, prints its table and merges its figures into ``benchmarks/results/gateway.json``. The hour of
faults runs by itself (``make bench-faults``) and merges its figures into the same file.
"""

from __future__ import annotations

import sys

from benchmarks import peers, runner

BENCHMARKS = ("gateway_toy", "gateway_models", "gateway_batching", "gateway_overload", "gateway_body", "gateway_tracing", "gateway_memory")

if __name__ == "__main__":
    peers.main()
    sys.exit(runner.main("gateway", BENCHMARKS))
