"""All figures of the spine, one benchmark after another: ``make bench-spine``, or ``python -m benchmarks.spine gateway_toy trainer``.

Each benchmark runs in a process of its own, prints its table and merges its figures into ``benchmarks/results/spine.json``.
The alternatives that we are measured beside live in ``.venv-bench``, which sees the packages of the main environment.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import results

ROOT = Path(__file__).parent.parent
PEERS = ROOT / ".venv-bench"
BENCHMARKS = ("gateway_toy", "many_scenarios", "trainer", "quality_text", "quality_vision", "quality_chatbot")


def make_peers() -> None:
    """The environment of the alternatives, once; torch and numpy come from the environment that runs this."""
    python = PEERS / "bin" / "python"
    stamp = PEERS / ".complete"
    pins = ROOT / "benchmarks" / "peers.txt"
    if stamp.is_file() and stamp.read_text() == pins.read_text():
        return
    print(f"==> installing the alternatives into {PEERS.name}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
    site = subprocess.run([sys.executable, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True, check=True).stdout.strip()
    inner = subprocess.run([str(python), "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True, check=True).stdout.strip()
    # A path file and not --system-site-packages, which would show the base interpreter's packages instead of this environment's.
    (Path(inner) / "main_environment.pth").write_text(f"{site}\n")
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(pins)], check=True)
    stamp.write_text(pins.read_text())


def main() -> int:
    """Run the named benchmarks, or all; the exit status tells whether every one ran to its end."""
    make_peers()
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
