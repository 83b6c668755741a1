"""All figures beside a real Triton, one benchmark after another: ``make bench-triton``, or ``python -m benchmarks.triton triton_v2``.

Each benchmark runs in a process of its own, prints its table and merges its figures into ``benchmarks/results/triton.json``.
"""

from __future__ import annotations

import sys

from benchmarks import peers, runner

BENCHMARKS = ("triton_v2", "triton_engine", "triton_streaming", "triton_optimized")

if __name__ == "__main__":
    peers.make()
    sys.exit(runner.main("triton", BENCHMARKS, whole=True))
