"""The environment of the real Triton server that the tests of the v2 protocol run against: ``.venv-triton``, from NVIDIA's wheel, without a container.

The wheel needs NumPy 1, so it lives apart. It is for Linux on x86-64 with glibc 2.35; elsewhere the tests of that server are skipped.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv-triton"
PACKAGE = "nvidia-pytriton==0.7.0"
"""Carries tritonserver 2.51.0 with its python backend."""


def main() -> None:
    """Make it; one that is there is left alone."""
    if (FOLDER / ".complete").exists():
        return
    if sys.platform != "linux" or platform.machine() != "x86_64":
        print(f"    no {PACKAGE} for this machine: the tests against a real Triton are skipped")
        return
    print(f"    making {FOLDER.name} ({PACKAGE}, about 370 MB) …", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
    subprocess.run([str(FOLDER / "bin" / "python"), "-m", "pip", "install", "--quiet", PACKAGE], check=True)
    (FOLDER / ".complete").write_text(PACKAGE)


if __name__ == "__main__":
    main()
