"""NVIDIA's ``perf_analyzer`` as it is, against any server of the v2 protocol; ``scripts/setup_triton.py`` installs it."""

from __future__ import annotations

import csv
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

from tests.gateway.triton import FOLDER

INSTALLED = FOLDER / "perf_analyzer"


class Measured(NamedTuple):
    """What it reports of one window."""

    per_second: float
    p50_us: float
    out: str
    """What it printed."""


def run(address: str, protocol: Literal["http", "grpc"], model: str, *more: str, clients: int = 1, window_ms: int = 500) -> Measured:
    """Closed-loop load of ``clients``; takes four windows or so.

    Raises:
        AssertionError: it found something that is not as with Triton, or a request failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "figures.csv"
        command = [str(INSTALLED / "bin" / "perf_analyzer"), "-m", model, "-u", address, "-i", protocol, "--concurrency-range", str(clients)]
        # Three windows count as stable however far they differ: the machine is shared.
        command += ["--measurement-interval", str(window_ms), "--stability-percentage", "999", "--max-trials", "3", "-f", str(table), *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"LD_LIBRARY_PATH": str(INSTALLED / "lib")})
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        (row,) = csv.DictReader(table.read_text().splitlines())
    return Measured(float(row["Inferences/Second"]), float(row["p50 latency"]), said)
