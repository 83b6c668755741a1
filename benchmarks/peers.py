"""The environments of the alternatives: those that cannot live together have one each, beside ``.venv``.

``python -m benchmarks.peers`` makes them all; torch and numpy come from the environment that runs this.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = "main_environment.pth"


def python_of(peer: str = "") -> Path:
    """The interpreter of an environment: that of ``peers.txt``, or of ``peers-<peer>.txt``."""
    return ROOT / (f".venv-bench-{peer}" if peer else ".venv-bench") / "bin" / "python"


def make(peer: str = "") -> None:
    """Make one environment, unless it is as its pins say.

    That of ``peers.txt`` sees the packages of the main environment, the editable ones too; the others would be broken by them.
    """
    python = python_of(peer)
    folder = python.parent.parent
    pins = ROOT / "benchmarks" / (f"peers-{peer}.txt" if peer else "peers.txt")
    stamp = folder / ".complete"
    link = "" if peer else f"import site; site.addsitedir({_site(sys.executable)!r})\n"
    if stamp.is_file() and stamp.read_text() == pins.read_text() + link:
        return
    print(f"==> installing {pins.name} into {folder.name}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if link:
        # A path file and not --system-site-packages, which would show the base interpreter's packages instead of this environment's.
        (Path(_site(str(python))) / LINK).write_text(link)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(pins)], check=True)
    stamp.write_text(pins.read_text() + link)


def _site(python: str) -> str:
    command = [python, "-c", "import site; print(site.getsitepackages()[0])"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def versions(pattern: str = "peers*.txt") -> dict[str, str]:
    """The pinned alternatives."""
    found = {}
    for pins in sorted((ROOT / "benchmarks").glob(pattern)):
        for line in pins.read_text().splitlines():
            name, _, pinned = line.partition("==")
            if pinned:
                found[name.partition("[")[0]] = pinned
    return found


def main() -> None:
    """Make all."""
    for peer in ("", "mlserver", "bentoml", "ray"):
        make(peer)


if __name__ == "__main__":
    main()
