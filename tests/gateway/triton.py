"""A real Triton server with python backends that do what the scenarios of ``v2_servers`` do.

Its wheel keeps the parts of the backend apart and expects a container around it: the folder that ``backends`` makes, and the two variables of
``start``, are what it needs without one.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import platform
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from types import ModuleType

import httpx

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-triton"
STUB = "triton_python_backend_stub"

HEAD = """
import json, os, signal, time
import numpy as np
import triton_python_backend_utils as pb

def tensor(request, name):
    return pb.get_input_tensor_by_name(request, name).as_numpy()

def refused(text, code):
    return pb.InferenceResponse(error=pb.TritonError(text, code))
"""

WHOLE = """
class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            try:
                found = forward({name: tensor(request, name) for name in ("X", "IDS")})
            except Exception as fault:
                answers.append(refused(str(fault), pb.TritonError.INTERNAL))
                continue
            found["COUNT"] = found["COUNT"].reshape(-1, 1)
            answers.append(pb.InferenceResponse([pb.Tensor(name, np.ascontiguousarray(array)) for name, array in found.items()]))
        return answers
"""

PREDICT = """
class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            asked = [json.loads(each) for each in tensor(request, "REQUEST")]
            if any("text" not in each for each in asked):
                answers.append(refused("text is missing", pb.TritonError.INVALID_ARG))
                continue
            told = np.array([json.dumps({"text": each["text"], "answer": "one"}).encode() for each in asked], dtype=np.object_)
            answers.append(pb.InferenceResponse([pb.Tensor("RESPONSE", told)]))
        return answers
"""

STREAM = """
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender, asked = request.get_response_sender(), json.loads(tensor(request, "REQUEST")[0])
            for number in range(asked.get("n", 3)):
                told = json.dumps({"part": number, "text": asked["text"]}).encode()
                sender.send(pb.InferenceResponse([pb.Tensor("RESPONSE", np.array([told], dtype=np.object_))]))
            sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def missing() -> str | None:
    """Why Triton cannot run here, if so."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "NVIDIA's wheel of Triton is for Linux on x86-64"
    if not (FOLDER / ".complete").exists():
        return "needs .venv-triton: python scripts/setup_triton.py"
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return "Triton's python backend needs a Python with a shared library"
    return None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port


def _tensors(kind: str, tensors: list[tuple[str, str, list[int]]]) -> str:
    return "\n".join(f'{kind} [ {{ name: "{name}" data_type: TYPE_{datatype} dims: {dims} }} ]' for name, datatype, dims in tensors)


def repository(folder: Path, tensors: ModuleType) -> Path:
    """A model repository; ``tensors`` is the plugin whose forward the model of that name runs."""
    names = ("KILL", "SLEEP", "RAISE", "RUN")
    constants = "\n".join(f"{name} = {getattr(tensors, name)}" for name in names)
    text = [("REQUEST", "STRING", [-1])], [("RESPONSE", "STRING", [-1])]
    models = {
        "tensors": (
            f"{HEAD}\n{constants}\n{inspect.getsource(tensors.forward)}\n{WHOLE}",
            ([("X", "FP32", [4]), ("IDS", "INT64", [-1])], [("SUMS", "FP32", [2]), ("COUNT", "INT64", [1]), ("ODD", "BOOL", [4])]),
            "max_batch_size: 8\ndynamic_batching { }",
        ),
        "unit.predict": (HEAD + PREDICT, text, "max_batch_size: 0"),
        "unit.stream": (HEAD + STREAM, text, "max_batch_size: 0\nmodel_transaction_policy { decoupled: true }"),
    }
    for name, (code, (inputs, outputs), more) in models.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.py").write_text(code)
        config = [f'name: "{name}"', 'backend: "python"', more, _tensors("input", inputs), _tensors("output", outputs)]
        (folder / name / "config.pbtxt").write_text("\n".join([*config, "instance_group [ { kind: KIND_CPU count: 1 } ]", ""]))
    return folder


def backends(folder: Path, installed: Path) -> Path:
    """The folder of backends: the library as a copy (it may not lie elsewhere), the stub as a link (a copy finds its own libraries no more)."""
    python = folder / "python"
    python.mkdir(parents=True)
    for file in ("libtriton_python.so", "triton_python_backend_utils.py"):
        (python / file).write_bytes((installed / "backends" / "python" / file).read_bytes())
    (python / STUB).symlink_to(installed / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}" / STUB)
    return folder


class Triton:
    """A server that runs."""

    def __init__(self, folder: Path, models: Path) -> None:
        """Start one over a model repository."""
        (installed,) = FOLDER.glob("lib/python3.*/site-packages/pytriton/tritonserver")
        self.log = folder / "triton.log"
        ports = [_free_port(), _free_port()]
        self.http, self.grpc = (f"127.0.0.1:{port}" for port in ports)
        command = [
            *(str(installed / "bin" / "tritonserver"), f"--model-repository={models}", f"--backend-directory={backends(folder / 'backends', installed)}"),
            *("--http-address=127.0.0.1", f"--http-port={ports[0]}", "--grpc-address=127.0.0.1", f"--grpc-port={ports[1]}"),
            *("--model-control-mode=explicit", *(f"--load-model={path.name}" for path in models.iterdir()), "--disable-auto-complete-config"),
            *("--exit-timeout-secs=5", "--allow-metrics=false"),
        ]
        # The first python3 on PATH gives the packages, the library path its interpreter; else the distribution's would come in.
        environ = os.environ | {"PATH": f"{FOLDER / 'bin'}:/usr/bin:/bin", "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))}
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self, timeout: float = 180.0) -> None:
        until = time.monotonic() + timeout
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://{self.http}/v2/health/ready").status_code == 200:
                    return
            if self.popen.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"Triton did not start: {self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            self.popen.wait(20)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
