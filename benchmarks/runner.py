"""Runs benchmarks one after another, each in a process of its own; what ``benchmarks.spine``, ``benchmarks.gateway`` and ``benchmarks.triton`` are made of."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import results

ROOT = Path(__file__).parent.parent


def main(file: str, benchmarks: Sequence[str], *, whole: bool = False) -> int:
    """Run the benchmarks that the command line names, or all, and show what ``results/<file>.json`` holds then; how many did not run to
    their end.

    ``whole``: these benchmarks make the whole file, so figures that a run of all did not make anew are dropped.
    """
    failed, start = [], results.now()
    for name in sys.argv[1:] or benchmarks:
        print(f"\n==> benchmarks.{name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT).returncode:
            failed.append(name)
    path = results.FOLDER / f"{file}.json"
    if whole and not failed and not sys.argv[1:]:
        results.drop_older(file, start)
    if path.is_file():
        print(f"\n==> {path.relative_to(ROOT)}")
        results.show(json.loads(path.read_text(encoding="utf8")))
    if failed:
        print(f"did not finish: {', '.join(failed)}", file=sys.stderr)
    return len(failed)
