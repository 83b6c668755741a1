"""Run the whole suite: fast tests first on all cores, then the slow ones one after another. Any failure ends with a non-zero code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Two pytest runs; the second still runs when the first fails, so that one run shows everything."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": "", "SCENARIUM_LANG": "en", "MPLBACKEND": "agg"}
    pytest = [sys.executable, "-m", "pytest", "-q", "-rs", "--durations=15", *sys.argv[1:]]
    workers = str(min(os.cpu_count() or 1, 4))
    fast = subprocess.run([*pytest, "-m", "not slow and not alone", "-n", workers, "--dist", "loadfile"], cwd=ROOT, env=environment).returncode
    slow = subprocess.run([*pytest, "-m", "slow or alone"], cwd=ROOT, env=environment).returncode
    return fast or slow


if __name__ == "__main__":
    sys.exit(main())
