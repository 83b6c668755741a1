"""All figures of the spine, one benchmark after another: ``make bench-spine``, or ``python -m benchmarks.spine many_scenarios trainer``.

Each benchmark runs in a process of its own, prints its table and merges its figures into ``benchmarks/results/spine.json``.
The alternatives that we are measured beside live in ``.venv-bench``, which sees the packages of the main environment.
"""

from __future__ import annotations

import sys

from benchmarks import peers, runner

BENCHMARKS = ("spine_toy", "many_scenarios", "trainer", "quality_text", "quality_vision", "quality_chatbot")

if __name__ == "__main__":
    peers.make()
    sys.exit(runner.main("spine", BENCHMARKS, whole=True))
