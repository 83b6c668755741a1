"""All figures of the spine, one benchmark after another: ``make bench-spine``, or ``python -m benchmarks.spine many_scenarios trainer``.

Each benchmark runs in a process of its own, prints its table and merges its figures into ``benchmarks/results/spine.json``.
The alternatives that we are measured beside live in ``.venv-bench``, which sees the packages of the main environment.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import peers, results

ROOT = Path(__file__).parent.parent
BENCHMARKS = ("many_scenarios", "trainer", "quality_text", "quality_vision", "quality_chatbot")


def main() -> int:
    """Run the named benchmarks, or all; the exit status tells whether every one ran to its end."""
    peers.make()
    failed = []
    for name in sys.argv[1:] or BENCHMARKS:
        print(f"\n==> benchmarks.{name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT).returncode:
            failed.append(name)
    path = results.FOLDER / "spine.json"
    if path.is_file():
        print(f"\n==> {path.relative_to(ROOT)}")
        results.show(json.loads(path.read_text(encoding="utf8")))
    if failed:
        print(f"did not finish: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
