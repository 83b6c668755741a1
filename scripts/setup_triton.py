"""The environment of the real Triton server that tests and benchmarks run against: ``.venv-triton``, as ``scenarium triton start --install`` makes one, with
torch for TorchScript; and NVIDIA's ``perf_analyzer``, the load that benchmarks and tests of the protocol use.

Where the wheel cannot run, the tests of that server are skipped.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from scenarium.core.triton import server

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv-triton"
TORCH = "torch==2.13.0"
"""The last that both NumPy 1 and the server bear."""
PERF = "tritonclient==2.43.0"
"""An older client: its wheel carries a ``perf_analyzer`` that needs no newer glibc than the server does, where later ones carry none or a newer one."""
PERF_FOLDER = FOLDER / "perf_analyzer"
LINKS = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12.*"}
"""Libraries that it needs, which the server's wheel has under other names."""


def main() -> None:
    """Make it; what is there is left alone."""
    if reason := server.impossible():
        print(f"    {reason.en}: the tests against a real Triton are skipped")
        return
    print(f"    {FOLDER.name}: {', '.join(server.PACKAGES)}, {TORCH} and perf_analyzer …", flush=True)
    server.install(FOLDER, TORCH)
    stamp = PERF_FOLDER / ".complete"
    if stamp.exists() and stamp.read_text() == PERF:
        return
    shutil.rmtree(PERF_FOLDER, ignore_errors=True)
    pip = [str(FOLDER / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(PERF_FOLDER), PERF]
    subprocess.run(pip, check=True)
    (vendored,) = FOLDER.glob("lib/python3.*/site-packages/nvidia_pytriton.libs")
    (PERF_FOLDER / "lib").mkdir()
    for name, pattern in LINKS.items():
        (PERF_FOLDER / "lib" / name).symlink_to(next(vendored.glob(pattern)))
    stamp.write_text(PERF)


if __name__ == "__main__":
    main()
