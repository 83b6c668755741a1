"""Run the whole suite: on all cores at once, long files first; then alone what watches the time itself. Any failure ends with a non-zero code.

It is a plugin of its own pytest runs too: the order of the files is its ``pytest_collection_modifyitems``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Two pytest runs; the second still runs when the first fails, so that one run shows everything."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": "", "SCENARIUM_LANG": "en", "MPLBACKEND": "agg"}
    run = [sys.executable, "-m", "pytest", "-q", "-rs", "--durations=25", *sys.argv[1:]]
    workers = str(min((os.cpu_count() or 1) + 1, 4))  # many tests wait for processes of their own
    at_once = ["-p", "scripts.run_tests", "-n", workers, "--dist", "loadfile", "--no-loadscope-reorder"]
    together = subprocess.run([*run, "-m", "not alone", *at_once], cwd=ROOT, env=environment).returncode
    alone = subprocess.run([*run, "-m", "alone"], cwd=ROOT, env=environment).returncode
    return together or alone


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many slow tests first, so that no core waits at the end for one that began late."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


if __name__ == "__main__":
    sys.exit(main())
