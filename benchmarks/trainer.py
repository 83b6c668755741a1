"""The shared trainer beside a plain PyTorch loop, Accelerate, Lightning Fabric, HF Trainer and Lightning, in one run.

Every way trains the same weights on the same rows in the same order with the same AdamW at a constant rate. A step is what passes
between two forwards, stamped inside the model; the first tenth is dropped, so set-up is outside, bars and logs are inside. Each
way is a process of its own with one thread, on a terminal that is read all the time, and all are asked in turn, in an order drawn
anew each round; then all of it once more in new processes. A figure is the smallest of a way's means (each over one training) and
counts the processor time of the whole process, bars' threads included: on a core of its own that is the wall clock, and neighbours
disturb it least.

    python -m benchmarks.trainer [--rounds 3] [--peers .venv-bench/bin/python]
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from benchmarks import results

ROOT = Path(__file__).parent.parent
WAYS = {
    "plain loop, DataLoader": "plain",
    "plain loop, our loader": "plain_our_loader",
    "Scenarium, same optimizer and loader": "ours_same",
    "Scenarium, fused AdamW (default)": "ours_default",
    "Accelerate loop": "accelerate",
    "Lightning Fabric": "fabric",
    "HF Trainer, logging every 10 steps": "hf",
    "Lightning, its bar and CSV logger": "lightning",
}
PEERS = {"accelerate", "fabric", "hf", "lightning"}
SETS = 2
"""Processes of each way, one after another: the same program is up to a tenth faster or slower in the next process."""
PACKAGES = ("torch", "accelerate", "lightning", "transformers")


class Worker:
    """One way in its own process."""

    def __init__(self, python: str, way: str) -> None:
        self.master, slave = pty.openpty()
        answers, theirs = os.pipe()
        command = [python, "-m", "benchmarks.trainer_ways", way, str(theirs)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=slave, stderr=slave, pass_fds=[theirs], text=True)
        os.close(slave)
        os.close(theirs)
        self.shown = b""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.answers = os.fdopen(answers)

    def ask(self, case: str) -> dict[str, Any]:
        """Mean microseconds of a step (``cpu``, ``wall``), and the SHA-256 of the trained weights."""
        assert self.process.stdin is not None
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        line = self.answers.readline()
        if not line:
            self.reader.join(10)
            raise SystemExit(f"{self.process.args} ended:\n{self.shown[-3000:].decode(errors='replace')}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.answers.close()

    def _read(self) -> None:
        try:
            while part := os.read(self.master, 65536):
                self.shown = (self.shown + part)[-10_000:]
        except OSError:  # the other end was closed
            os.close(self.master)


def measure(rounds: int, peers: str | None) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Way to case to one answer a round."""
    ways = {way: peers if way in PEERS else sys.executable for way in WAYS.values() if peers or way not in PEERS}
    found: dict[str, dict[str, list[dict[str, Any]]]] = {way: {"toy": [], "transformer": []} for way in ways}
    for turn in range(SETS):
        workers = {way: Worker(str(python), way) for way, python in ways.items()}
        for number in range(rounds):
            for way in random.Random(f"{turn} {number}").sample(sorted(workers), len(workers)):
                for case in ("toy", "transformer", "transformer"):
                    found[way][case].append(workers[way].ask(case))
        for worker in workers.values():
            worker.close()
    return found


def figures(rounds: int = 3, peers: str | None = None) -> list[results.Figure]:
    """The trainer's figures; those of the peers need a Python that has them (``benchmarks/peers.txt``)."""
    found = measure(rounds, peers)

    def best(way: str, case: str, clock: str = "cpu") -> float:
        return min(float(answer[clock]) for answer in found[way][case])

    def bits(way: str, case: str) -> set[str]:
        return {answer["weights"] for answer in found[way][case]}

    equal = all(len(bits("plain", case) | bits(way, case)) == 1 for way in ("ours_same", "plain_our_loader") for case in ("toy", "transformer"))

    def more(way: str, base: str) -> float:
        return best(way, "toy") - best(base, "toy")

    def share(way: str, base: str) -> float:
        return 100 * (best(way, "transformer") / best(base, "transformer") - 1)

    made = [
        results.figure("trainer: toy step over the plain loop, same optimizer and loader", more("ours_same", "plain_our_loader"), "µs", "lower", 60),
        results.figure("trainer: toy step over the plain loop with DataLoader, our defaults", more("ours_default", "plain"), "µs", "lower", 60, 0),
        results.figure("trainer: 6 ms step over the plain loop, same optimizer and loader", share("ours_same", "plain_our_loader"), "%", "lower", 2),
        results.figure("trainer: 6 ms step over the plain loop with DataLoader, our defaults", share("ours_default", "plain"), "%", "lower", 2, 0),
        results.figure("trainer: fp32 weights bit-equal to the plain loop's (1 = yes)", float(equal), "", "higher", 1),
    ]
    shown = {label: way for label, way in WAYS.items() if way in found}
    theirs = [label for label, way in shown.items() if way in PEERS]
    made += [results.figure(f"trainer: toy step over the plain loop, {label}", more(WAYS[label], "plain"), "µs", "lower") for label in theirs]
    for case in ("toy", "transformer"):
        made += [results.figure(f"trainer: {case} step, {label}", best(way, case), "µs", "lower") for label, way in shown.items()]
    made += [results.figure(f"trainer: toy step by the wall clock, {label}", best(way, "toy", "wall"), "µs", "lower") for label, way in shown.items()]
    return made


def main() -> None:
    """Measure, print, write ``results/spine.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    default = ROOT / ".venv-bench" / "bin" / "python"
    parser.add_argument("--peers", default=str(default) if default.exists() else None, help="a Python that has the packages of benchmarks/peers.txt")
    options = parser.parse_args()
    made = figures(options.rounds, options.peers)
    results.show(made)
    results.write("spine", made, PACKAGES)


if __name__ == "__main__":
    main()
