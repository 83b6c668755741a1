"""What only the tests need: the chatbot's Rasa environment, a real Triton server, Chromium for the browser test, wrk for benchmarks. Installs or
fails loudly."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = {
    "chromium": "the browser test of the Swagger page",
    "wrk": "the load of the gateway benchmarks",
    "npm": "data sets that are npm packages; it brings Node.js, which runs the JavaScript that `scenarium snippet` prints",
}


def main() -> None:
    """Debian packages first, then the environment; what is there already is left alone."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        install(missing)
    subprocess.run([sys.executable, "-m", "scenarium.core.cli", "env", "create", "chatbot"], cwd=ROOT, check=True)
    subprocess.run([sys.executable, str(ROOT / "scripts" / "setup_triton.py")], check=True)


def install(programs: list[str]) -> None:
    """Install Debian packages where that is possible, else say what to do."""
    needs = "; ".join(f"{name}: {PROGRAMS[name]}" for name in programs)
    if os.geteuid() or not shutil.which("apt-get"):
        sys.exit(
            f"the tests need {' and '.join(programs)} ({needs}); install them with the system's package manager, e.g. sudo apt-get install {' '.join(programs)}"
        )
    print(f"    installing {' '.join(programs)} ({needs}) …", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *programs]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{done.stderr}\n{' '.join(command)} failed")


if __name__ == "__main__":
    main()
