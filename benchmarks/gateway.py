"""All figures of the gateway, one benchmark after another: ``make bench-gateway``, or ``python -m benchmarks.gateway gateway_toy``.

Each benchmark runs in a process of its own, prints its table and merges its figures into ``benchmarks/results/gateway.json``. The hour of
faults runs by itself (``make bench-faults``) and merges its figures into the same file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import peers, results

ROOT = Path(__file__).parent.parent
BENCHMARKS = ("gateway_toy", "gateway_models", "gateway_batching", "gateway_overload", "gateway_body", "gateway_tracing", "gateway_memory")


def main() -> int:
    """Run the named benchmarks, or all; the exit status tells how many did not run to their end."""
    peers.main()
    failed = []
    for name in sys.argv[1:] or BENCHMARKS:
        print(f"\n==> benchmarks.{name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT).returncode:
            failed.append(name)
    path = results.FOLDER / "gateway.json"
    if path.is_file():
        print(f"\n==> {path.relative_to(ROOT)}")
        results.show(json.loads(path.read_text(encoding="utf8")))
    if failed:
        print(f"did not finish: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
