"""A process of its own that loads a version and answers, as a worker does: what it imports, keeps and leaves behind.

Run as ``python -m scenarium.core.kit.child`` with a job (JSON) on standard input; the report (JSON) goes to standard output.
"""

from __future__ import annotations

import gc
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scenarium.core.kit.subject import Subject

ROUNDS = 3
ROUND_SECONDS, ROUND_LIMIT_SECONDS = 0.7, 4.0
"""Processor time of a round, so that a busy machine asks no fewer requests; and the wall time of one that waits for another process."""
NOISE_BYTES = 16 * 1024
"""What threads that work at the moment of a mark may hold; where requests are slow a round has few of them to divide it by."""
GRACE_SECONDS = 10.0


@dataclass
class Report:
    """What the process did."""

    engine: str
    first: Any
    """The answer to the first request before all others, and after them."""
    again: Any
    answers: list[Any]
    """All answers, of one batch."""
    torch: tuple[str, int] | None
    """File and line that imported torch first."""
    threads_added: int
    bytes_a_request: int
    ended: bool = True


def run_child(s: Subject, engine: str) -> Report:
    """Load the trained version in a new process with ``engine`` and answer the subject's requests.

    Raises:
        ScenariumError: SCN-7516 (the process failed, with the end of what it said).
    """
    from scenarium.core.errors import ScenariumError

    plugin = s.scenario.plugin
    job = {
        "name": s.name,
        "plugin": [plugin.name, plugin.target, plugin.distribution, plugin.version],
        "path": [str(s.project)] if s.project else [],
        "config": s.config.model_dump(mode="json"),
        "folder": str(s.trained.folder),
        "engine": engine,
        "home": str(s.home),
        "requests": [request.model_dump(mode="json", exclude_unset=True) for request in s.requests],
    }
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(job).encode())
        process.stdin.close()
        line = process.stdout.readline()
        try:
            process.wait(GRACE_SECONDS)
            ended = True
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            ended = False
        process.stdout.close()
        errors.seek(0)
        said = errors.read().decode("utf8", "replace").strip()
    found: dict[str, Any] = json.loads(line) if line.startswith(b"{") else {"fault": said.splitlines()[-1] if said else f"exit code {process.returncode}"}
    if "fault" in found:
        raise ScenariumError("SCN-7516", reason=found["fault"])
    return Report(engine=engine, ended=ended, **{**found, "torch": tuple(found["torch"]) if found["torch"] else None})


class _TorchWatch(MetaPathFinder):
    """Notes which line imports torch first, and lets it."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.at: tuple[str, int] | None = None

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        if fullname == "torch" and self.at is None:
            frames = [f for f in traceback.extract_stack() if not f.filename.startswith("<frozen") and f.filename != __file__]
            own = [f for f in frames if f.filename.startswith(self.home)]
            frame = (own or frames)[-1]
            self.at = (frame.filename, frame.lineno or 0)


def main() -> None:
    """Do the job on standard input; a fault becomes the report."""
    # What the plugin prints must not stand between the reader and the report.
    out, sys.stdout = sys.stdout, sys.stderr
    try:
        report = work()
    except Exception as fault:
        # An error of Scenarium's own holds its remedy on a second line, which the parent's error has already.
        report = {"fault": f"{type(fault).__name__}: {str(fault).partition(chr(10))[0]}"}
    out.write(json.dumps(report) + "\n")
    out.flush()


def work() -> dict[str, Any]:
    """Load and answer, as the job on standard input says."""
    job = json.loads(sys.stdin.buffer.read())
    sys.path[:0] = job["path"]
    watch = _TorchWatch(job["home"])
    sys.meta_path.insert(0, watch)
    from scenarium.core.manifest import Manifest
    from scenarium.core.registry import Plugin
    from scenarium.core.runtime import STATE, Runtime

    plugin = Plugin(*job["plugin"])
    scenario = _scenario(job, plugin)
    folder = Path(job["folder"])
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    runtime = Runtime(scenario, json.loads((folder / STATE).read_text(encoding="utf8")), folder, traits=manifest.traits)
    requests = [runtime.schema.request.model_validate_json(json.dumps(request)) for request in job["requests"]]

    def answers(asked: list[Any]) -> list[Any]:
        return [{"error": str(a)} if isinstance(a, Exception) else a.model_dump(mode="json") for a in runtime.predict(asked)]

    first = answers(requests[:1])
    bodies = answers(requests)
    again = answers(requests[:1])
    torch_at = watch.at
    threads, growth = _growth(runtime, requests[:1])
    return {"first": first, "again": again, "answers": bodies, "torch": torch_at, "threads_added": threads, "bytes_a_request": growth}


def _scenario(job: dict[str, Any], plugin: Any) -> Any:
    from scenarium.core.config import Settings
    from scenarium.core.registry import Registry

    scenario = Registry(Settings({}, None), {job["name"]: plugin}).scenario(job["name"])
    config = scenario.hook.config().model_validate({**job["config"], "serve": {**job["config"]["serve"], "engine": job["engine"]}})
    return scenario.with_config(config)


def _growth(runtime: Any, requests: list[Any]) -> tuple[int, int]:
    """Threads added, and bytes kept for each request: the smaller growth of the last two rounds, so that a cache that fills once is no leak."""
    for _ in range(3):
        runtime.predict(requests)
    threads = threading.active_count()
    tracemalloc.start()
    marks: list[tuple[int, int]] = []
    for _ in range(ROUNDS):
        work, until, count = time.process_time() + ROUND_SECONDS, time.monotonic() + ROUND_LIMIT_SECONDS, 0
        while count < 3 or (count < 200 and time.process_time() < work and time.monotonic() < until):
            runtime.predict(requests)
            count += 1
        gc.collect()
        marks.append((tracemalloc.get_traced_memory()[0], count))
    tracemalloc.stop()
    grown = [max(0, after[0] - before[0] - NOISE_BYTES) // after[1] for before, after in itertools.pairwise(marks)]
    return max(0, threading.active_count() - threads), min(grown)


if __name__ == "__main__":
    main()
