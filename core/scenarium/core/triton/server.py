"""A real ``tritonserver`` without a container: the one in NVIDIA's wheel ``nvidia-pytriton``, in an environment of its own, since it needs NumPy 1.

The wheel expects a container around it. What it needs without one, each found by trial:

- The stub of its python backend must lie in the folder of backends, as a link (a copy does not find its libraries); the backend's library
  must be a copy (a link "escapes the backend directory").
- The stub embeds the ``libpython`` that the loader finds, and takes its packages from the first ``python3`` on ``PATH``: both must be the environment's,
  else the distribution's come in. So the environment's interpreter needs a shared library.
- It has the ``python`` backend alone; ``backend.py`` beside this file stands for ``onnxruntime`` and ``pytorch``.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from scenarium.core import environments
from scenarium.core.errors import ScenariumError, Words

PACKAGES = ("nvidia-pytriton==0.7.0", "onnxruntime>=1.20,<1.24")
"""tritonserver 2.51.0 with its python backend, and what serves the ONNX exports there."""
TORCH = "torch>=2.6"
"""What serves TorchScript there, for those who want it: it is large."""
IMAGE = "nvcr.io/nvidia/tritonserver:24.10-py3"
"""The container of the same server (2.51.0)."""
STUB = "triton_python_backend_stub"
COMPLETE = ".complete"


def folder() -> Path:
    """Where the environment of this user stands or will stand: ``SCENARIUM_TRITON_ENV``, else among the other environments."""
    chosen = os.environ.get("SCENARIUM_TRITON_ENV")
    return Path(chosen) if chosen else environments.root() / "triton-0.7.0"


def impossible() -> Words | None:
    """Why the wheel cannot run on this machine, if so."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return Words("NVIDIA's wheel of Triton is for Linux on x86-64", "NVIDIA 的 Triton wheel 只支持 x86-64 上的 Linux")
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return Words("Triton's python backend needs a Python with a shared library (libpython)", "Triton 的 python 后端需要带共享库（libpython）的 Python")
    return None


def install(where: Path, *more: str) -> None:
    """Make the environment, with ``more`` packages; one that holds the same is left alone.

    Raises:
        ScenariumError: SCN-6041 (not on this machine), SCN-6042 (a step failed).
    """
    if reason := impossible():
        raise ScenariumError("SCN-6041", reason=reason)
    wanted = "\n".join([*PACKAGES, *more])
    if (where / COMPLETE).is_file() and (where / COMPLETE).read_text(encoding="utf8") == wanted:
        return
    steps = [[sys.executable, "-m", "venv", str(where)], [str(where / "bin" / "python"), "-m", "pip", "install", "--quiet", *PACKAGES, *more]]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise ScenariumError("SCN-6042", step=" ".join(step), reason="\n".join((done.stderr or done.stdout).strip().splitlines()[-8:]))
    (where / COMPLETE).write_text(wanted, encoding="utf8")


def installed(where: Path) -> Path:
    """The folder of the server in a complete environment.

    Raises:
        ScenariumError: SCN-6041 (not on this machine), SCN-6043 (it was not made; names the command).
    """
    if reason := impossible():
        raise ScenariumError("SCN-6041", reason=reason)
    found = list(where.glob("lib/python3.*/site-packages/pytriton/tritonserver")) if (where / COMPLETE).is_file() else []
    if not found:
        raise ScenariumError("SCN-6043", folder=where)
    return found[0]


def assemble(target: Path, server: Path) -> Path:
    """Fill ``target`` as a folder of backends."""
    python = target / "python"
    python.mkdir(parents=True)
    for file in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copyfile(server / "backends" / "python" / file, python / file)
    (python / STUB).symlink_to(server / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}" / STUB)
    for name in ("onnxruntime", "pytorch"):
        (target / name).mkdir()
        shutil.copyfile(Path(__file__).parent / "backend.py", target / name / "model.py")
    return target


def container(models: str, http: int, grpc: int, metrics: int) -> str:
    """The command for the container, the normal case. It polls, since in explicit mode nobody would tell it of a rollback; a model that it cannot load (of the
    python backend, where the image lacks the interpreter) harms no other. ``models`` is a local folder, or a bucket that Triton reads (``s3://…``, ``gs://…``, ``as://…``)."""
    local = "://" not in models
    mount = f" -v {Path(models).absolute()}:/models:ro" if local else ""
    return (
        f"docker run --rm --ipc=host -p {http}:8000 -p {grpc}:8001 -p {metrics}:8002{mount} {IMAGE} tritonserver "
        f"--model-repository={'/models' if local else models} --model-control-mode=poll --repository-poll-secs=1 --exit-on-error=false"
    )


def ended(log: Path) -> ScenariumError:
    """The error of a server that ended, with its last word."""
    lines = log.read_text(encoding="utf8", errors="replace").splitlines()
    told = [line for line in lines if line.startswith("error:")] or [line for line in lines if line[:1] == "E"] or lines or ["-"]
    return ScenariumError("SCN-6044", log=log, last=told[-1])


class Server:
    """A server that runs. It loads what it is told to (``--model-control-mode=explicit``)."""

    def __init__(
        self,
        environment: Path,
        models: Path,
        ports: tuple[int, int, int],
        *,
        host: str = "127.0.0.1",
        load: Sequence[str] = ("*",),
        log: Path | None = None,
        options: Sequence[str] = (),
        timeout: float = 180.0,
    ) -> None:
        """Start it over the model repository ``models`` and wait until it is ready. ``ports``: HTTP, gRPC, metrics.

        Raises:
            ScenariumError: SCN-6041, SCN-6043, SCN-6044 (it ended, or was not ready within ``timeout`` seconds).
        """
        server = installed(environment)
        self.http, self.grpc, self.metrics = (f"{host}:{port}" for port in ports)
        self._work = tempfile.TemporaryDirectory(prefix="scenarium-triton-", ignore_cleanup_errors=True)
        work = Path(self._work.name)
        self.log = log or work / "triton.log"
        command = [
            *(str(server / "bin" / "tritonserver"), f"--model-repository={models}", f"--backend-directory={assemble(work / 'backends', server)}"),
            *(f"--{kind}-{what}" for kind, port in zip(("http", "grpc", "metrics"), ports, strict=True) for what in (f"address={host}", f"port={port}")),
            *("--model-control-mode=explicit", *(f"--load-model={name}" for name in load), "--exit-on-error=false"),
            *("--disable-auto-complete-config", "--allow-gpu-metrics=false", "--exit-timeout-secs=5", *options),
        ]
        environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        environ |= {"PATH": f"{environment.absolute() / 'bin'}:/usr/bin:/bin", "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))}
        with self.log.open("ab") as file:
            self.popen = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environ)
        try:
            self._wait(timeout)
        except BaseException:
            self.stop()
            raise

    def _wait(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://{self.http}/v2/health/live", trust_env=False).status_code == 200:
                    return
            if self.popen.poll() is not None or time.monotonic() > until:
                raise ended(self.log)
            time.sleep(0.1)

    def stop(self) -> int:
        """End it; its exit status. What its dead model processes left in shared memory goes by its own end."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            self.popen.wait(20)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self._work.cleanup()
        return self.popen.returncode
