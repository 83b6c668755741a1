"""Install core, gateway, training and every plugin into the interpreter that runs this, with the tested pins and plain pip."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def pip(what: str, *arguments: str) -> None:
    """Run one pip install, saying what it is for and how long it took."""
    print(f"    {what} …", flush=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", "constraints.txt", *arguments]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr}\nset-up failed while installing {what}; correct the cause above and run the same make target again")
    print(f"    {what}: {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    """Five pip lines; the editable installs skip build isolation, which makes them twenty times faster."""
    if sys.version_info < (3, 11):  # noqa: UP036 -- an older interpreter may have made the environment
        sys.exit(f"Scenarium needs Python 3.11 or newer, this is {sys.version.split()[0]}; run: make setup PYTHON=python3.11")
    pip("build tools", "hatchling", "editables")
    # torch and torchvision must be one matching pair: a torchvision that fails to import breaks all of transformers.
    pip("torch and torchvision", "torch", "torchvision")
    pip("scenarium and the development tools", "--no-build-isolation", "--requirement", "requirements-dev.txt")
    parts = sorted(p.parent for folder in ("plugins", "extensions") for p in ROOT.glob(f"{folder}/*/pyproject.toml"))
    editables = [argument for part in parts for argument in ("--editable", str(part))]
    # In a command of their own: pip 23 finds no solution where many parts ask for different extras of a folder named beside them.
    pip(f"{len(parts)} plugins and extensions", "--no-build-isolation", *editables)


if __name__ == "__main__":
    main()
