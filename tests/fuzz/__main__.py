"""The coverage-guided fuzzer (atheris on libFuzzer): ``python -m tests.fuzz [--seconds 600] [TARGET …]``, as ``make fuzz`` runs it.

What was found is kept in ``tests/fuzz/corpus/TARGET`` once it is corrected; what the fuzzer learns on the way stays in ``.cache/fuzz``.
A finding (exception, hang of 5 s, 2 GB of memory) ends the run with its bytes in ``.cache/fuzz/found`` and a non-zero status.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
CACHE = Path(__file__).parents[2] / ".cache" / "fuzz"
NAMES = ("body", "headers", "batch_frames", "worker_frames", "elements", "pictures", "tensors")


def main() -> int:
    """Run every target, one after another, for its share of the time."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=int, default=600, help="for all targets together")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where what is learned is kept")
    parser.add_argument("--seed", type=int, default=0, help="0: another each time")
    parser.add_argument("targets", nargs="*", default=[], choices=[*NAMES, []])
    options = parser.parse_args()
    names = options.targets or NAMES
    share = max(1, options.seconds // len(names))
    return max(fuzz(name, share, options.cache, options.seed) for name in names)


def fuzz(name: str, seconds: int, cache: Path, seed: int = 0) -> int:
    """Fuzz one target in a process of its own; returns its exit status."""
    learned, found = cache / name, cache / "found"
    learned.mkdir(parents=True, exist_ok=True)
    found.mkdir(exist_ok=True)
    bounds = [f"-max_total_time={seconds}", "-timeout=5", "-rss_limit_mb=2048", "-max_len=20000", f"-seed={seed}"]
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.run",
        name,
        f"-artifact_prefix={found}/{name}-",
        "-print_final_stats=1",
        *bounds,
        str(learned),
        str(CORPUS / name),
    ]
    print(f"==> {name}: {seconds} s", flush=True)
    return subprocess.run(command, check=False, cwd=CORPUS.parents[2]).returncode


if __name__ == "__main__":
    sys.exit(main())
