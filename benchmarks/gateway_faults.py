"""An hour of mixed load with a fault every ten seconds: what is lost, what grows, what stays behind, how soon all is well again.

    python -m benchmarks.gateway_faults [--minutes 60] [--seed 1] [--rate 100]

Four scenarios answer single requests, batches, streams and jobs, with priorities, deadlines and clients that leave (``mixed_load``). The
faults (``faults``) come from a seeded schedule: each kind in turn, the order drawn anew each time. Store, jobs, keys and audit log lie on
a small file system of their own, so that the full disk is one: the program starts itself again in a mount namespace (Linux, root). Where
that is not possible the gateway's files get a limit (RLIMIT_FSIZE) instead, and the first line says so. Without an audit log small predictions
are answered by their connections (``scenarium.gateway.direct``), with one by ASGI: ``--no-audit`` tries the other way.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from benchmarks import results
from benchmarks.faults import SETTINGS, SPARE, WEIGHTS_MB, WORKER_MB, WORKERS, Faults
from benchmarks.mixed_load import IMPURE, Load
from scenarium.gateway.audit import verify
from tests.gateway.conftest import GatewayProcess, Lab

DISK_MB = 768
LOOK_S = 5.0
PACKAGES = ("starlette", "uvicorn", "uvloop", "httptools", "pydantic")
MOUNTED = "SCENARIUM_BENCH_DISK"
"""Names the file system of its own, where this process runs in a namespace that has one."""


class Sample(NamedTuple):
    """What the gateway's processes hold."""

    at: float
    gateway_mb: float
    tree_mb: float
    files: int


class Watch:
    """Samples of memory (PSS) and open files, and every process that was ever seen."""

    def __init__(self, gateway: GatewayProcess, audit: bool) -> None:
        self.gateway = gateway
        self.audit = audit
        """Whether the gateway keeps an audit log."""
        self.samples: list[Sample] = []
        self.pids: set[int] = set()

    async def run(self) -> None:
        """Look every five seconds, for ever."""
        began = time.monotonic()
        while True:
            own = self.gateway.popen.pid
            sizes = {pid: size for pid in self.gateway.processes() if (size := pss_mb(pid)) is not None}
            self.pids |= set(sizes)
            self.samples.append(Sample(time.monotonic() - began, sizes[own], sum(sizes.values()), len(os.listdir(f"/proc/{own}/fd"))))
            if len(self.samples) % 12 == 0:
                print(f"{'':9}gateway {sizes[own]:.1f} MB, all {sum(sizes.values()):.1f} MB in {len(sizes)} processes", flush=True)
            await asyncio.sleep(5)

    def growth(self, field: str) -> float:
        """From minute 5 to the end: the difference of medians over ten minutes (a third of what there is, in a short run), since each
        fault changes for a while how much the workers share."""
        last = self.samples[-1].at
        after = min(300.0, last / 3)
        span = min(600.0, (last - after) / 3)
        early = [getattr(s, field) for s in self.samples if after <= s.at <= after + span]
        late = [getattr(s, field) for s in self.samples if s.at >= last - span]
        return float(statistics.median(late) - statistics.median(early))


def pss_mb(pid: int) -> float | None:
    """A process's proportional share of memory; None where it has ended."""
    with contextlib.suppress(OSError, AttributeError):
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        return int(found[1]) / 1024 if found else None
    return None


def own_disk() -> None:
    """Start this program again in a mount namespace with a small file system, where that is possible."""
    if MOUNTED in os.environ or not hasattr(os, "geteuid") or os.geteuid() or not shutil.which("unshare"):
        return
    inside = ["unshare", "--mount", "--propagation", "private"]
    folder = tempfile.mkdtemp(prefix="scenarium-faults-")
    mount = f"mount -t tmpfs -o size={DISK_MB}m,mode=700 tmpfs {folder}"
    if subprocess.run([*inside, "sh", "-c", mount], capture_output=True, check=False).returncode:
        os.rmdir(folder)
        return
    command = [*inside, "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-m", "benchmarks.gateway_faults", *sys.argv[1:]]
    status = subprocess.run(command, env=os.environ | {MOUNTED: folder}, check=False).returncode
    os.rmdir(folder)
    sys.exit(status)


async def measure(lab: Lab, gateway: GatewayProcess, disk: Path | None, options: argparse.Namespace) -> tuple[Load, Faults, Watch]:
    """The load, the faults and the look at the processes, together."""
    load, watch = Load(gateway.url, list(WORKERS), options.seed), Watch(gateway, options.audit)
    faults = Faults(lab, gateway, load, disk, options.seed)
    began = time.monotonic()

    def interim() -> None:
        report(load, faults, watch, time.monotonic() - began, None)

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, interim)
    async with asyncio.TaskGroup() as group:  # a fault of any of them ends them all
        looking = group.create_task(watch.run())
        loading = group.create_task(load.run(options.clients, options.rate))
        await faults.run(options.minutes * 60)
        load.stopping.set()
        await loading
        await asyncio.sleep(2 * LOOK_S)
        looking.cancel()
    return load, faults, watch


def start(lab: Lab, audit: bool) -> GatewayProcess:
    """The gateway, with a memory budget that holds one of the spare scenarios."""
    for name in WORKERS:
        settings = {"model.pure": name != IMPURE, **({"model.concurrency": 8} if name == "talks" else {})}
        for answer in ("first", "second", "third"):
            lab.publish(name, "unit", settings | {"model.answer": answer})
    counts = [f"scenarios.{name}.serve.workers={count}" for name, count in WORKERS.items() if count > 1]
    sets = [*SETTINGS, *counts, *([f"gateway.audit={lab.folder / 'audit.jsonl'}"] if audit else [])]
    plugins = {"unit": "unit", "heavy": "heavy"}
    first = lab.start(plugins, *sets)
    first.ready(*WORKERS)
    time.sleep(1)
    base = sum(pss_mb(pid) or 0.0 for pid in first.processes())
    first.stop()
    for name in SPARE:
        lab.publish(name, "heavy", weights=WEIGHTS_MB << 20)
    gateway = lab.start(plugins, *sets, f"gateway.memory_budget={round((base + 1.6 * WORKER_MB) * 2**20)}", "gateway.residence_s=1")
    print(f"memory: {base:.0f} MB without the spare scenarios, of which the budget holds one", flush=True)
    return gateway


def report(load: Load, faults: Faults, watch: Watch, seconds: float, left: int | None) -> list[results.Figure]:
    """Print what happened; the figures. ``left``: processes that stayed behind; None while it still runs (SIGUSR1)."""
    ends = Counter(failed.kind for failed in load.failed)
    print(f"\n{'request':<12}{'sent':>9}{'answered':>10}{'own error':>11}{'other error':>13}")
    for kind, sent in load.sent.items():
        print(f"{kind:<12}{sent:>9}{load.right[kind]:>10}{load.own[kind]:>11}{ends[kind]:>13}")
    print(f"\n{'fault':<18}{'times':>6}{'median s':>10}{'longest s':>11}")
    for kind, took in sorted(faults.recovery.items()):
        print(f"{kind:<18}{len(took):>6}{statistics.median(took):>10.2f}{max(took):>11.2f}")
    others = faults.others()
    for title, found in (("lost", load.lost), ("crossed", load.crossed), ("errors of others", others), ("not well in time", faults.broken)):
        print(f"\n{title}: {len(found)}", *found[:20], sep="\n  ")
    killed = Counter(event["reason"] for event in watch.gateway.events if event["event"] == "worker_killed")
    print("\nworkers that the gateway killed:", dict(killed))
    name = f"gateway: {seconds / 60:.3g} minutes of mixed faults{'' if watch.audit else ', no audit log'}"
    made = [
        results.figure(f"{name}, requests", sum(load.sent.values()), "", "higher"),
        results.figure(f"{name}, faults", sum(map(len, faults.recovery.values())), "", "higher"),
        results.figure(f"{name}, lost answers", len(load.lost), "", "lower", 0, 0),
        results.figure(f"{name}, crossed answers", len(load.crossed), "", "lower", 0, 0),
        results.figure(f"{name}, errors of requests that no fault was aimed at", len(others), "", "lower", 0, 0),
        results.figure(f"{name}, faults after which not all was well within 60 s", len(faults.broken), "", "lower", 0, 0),
        results.figure(f"{name}, growth of the process tree's memory (PSS)", watch.growth("tree_mb"), "MB", "lower", 20, 0),
        results.figure(f"{name}, growth of the gateway's memory (PSS)", watch.growth("gateway_mb"), "MB", "lower", 20, 0),
        results.figure(f"{name}, growth of the gateway's open files", watch.growth("files"), "", "lower"),
    ]
    if left is not None:
        made.append(results.figure(f"{name}, processes that stayed behind", left, "", "lower", 0, 0))
    for kind, took in sorted(faults.recovery.items()):
        made.append(results.figure(f"{name}, all well again after {kind}, median", statistics.median(took), "s", "lower"))
    print()
    results.show(made)
    return made


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=100, help="requests a second, in all")
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--audit", action=argparse.BooleanOptionalAction, default=True, help="keep an audit log")
    parser.add_argument("--write", action="store_true", help="write the figures to benchmarks/results/gateway.json")
    options = parser.parse_args()
    own_disk()
    disk = Path(os.environ[MOUNTED]) if MOUNTED in os.environ else None
    print(f"full disk: {'a file system of its own' if disk else 'a limit of the size of files (RLIMIT_FSIZE)'}", flush=True)
    lab = Lab(disk or Path(tempfile.mkdtemp(prefix="scenarium-faults-")))
    gateway = start(lab, options.audit)
    try:
        gateway.ready(*WORKERS)
        load, faults, watch = asyncio.run(measure(lab, gateway, disk, options))
        gateway.stop()
        time.sleep(2)
        left = [pid for pid in lab.alive(watch.pids) if b"scenarium" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        if options.audit:
            lines, _ = verify([lab.folder / "audit.jsonl"])
            print(f"audit log: {lines} lines, whole")
        made = report(load, faults, watch, options.minutes * 60, len(left))
    finally:
        gateway.popen.kill()
    print(*sorted(set(gateway.noise)), sep="\n")
    if options.write:
        results.write("gateway", made, PACKAGES)


if __name__ == "__main__":
    main()
