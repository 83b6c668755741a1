"""The environment of the real Triton server that the tests of the v2 protocol run against: ``.venv-triton``, from NVIDIA's wheel, without a container;
and NVIDIA's ``perf_analyzer``, the load that benchmarks and tests of the protocol use.

The wheel needs NumPy 1, so it lives apart. It is for Linux on x86-64 with glibc 2.35; elsewhere the tests of that server are skipped.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv-triton"
PACKAGE = "nvidia-pytriton==0.7.0"
"""Carries tritonserver 2.51.0 with its python backend."""
PERF = "tritonclient==2.43.0"
"""An older client: its wheel carries a ``perf_analyzer`` that needs no newer glibc than the server does, where later ones carry none or a newer one."""
PERF_FOLDER = FOLDER / "perf_analyzer"
LINKS = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12.*"}
"""Libraries that it needs, which the server's wheel has under other names."""


def main() -> None:
    """Make it; one that is there is left alone."""
    stamp = FOLDER / ".complete"
    if stamp.exists() and stamp.read_text() == f"{PACKAGE}\n{PERF}":
        return
    if sys.platform != "linux" or platform.machine() != "x86_64":
        print(f"    no {PACKAGE} for this machine: the tests against a real Triton are skipped")
        return
    print(f"    making {FOLDER.name} ({PACKAGE} and perf_analyzer, about 400 MB) …", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
    pip = [str(FOLDER / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, PACKAGE], check=True)
    shutil.rmtree(PERF_FOLDER, ignore_errors=True)
    subprocess.run([*pip, "--no-deps", "--target", str(PERF_FOLDER), PERF], check=True)
    (vendored,) = FOLDER.glob("lib/python3.*/site-packages/nvidia_pytriton.libs")
    (PERF_FOLDER / "lib").mkdir()
    for name, pattern in LINKS.items():
        (PERF_FOLDER / "lib" / name).symlink_to(next(vendored.glob(pattern)))
    stamp.write_text(f"{PACKAGE}\n{PERF}")


if __name__ == "__main__":
    main()
