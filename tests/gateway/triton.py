"""A real Triton server with python backends that do what the scenarios of ``v2_servers`` do."""

from __future__ import annotations

import inspect
import socket
from pathlib import Path
from types import ModuleType

from scenarium.core.errors import ScenariumError
from scenarium.core.triton.server import Server as Server
from scenarium.core.triton.server import installed

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-triton"

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
    try:
        installed(FOLDER)
    except ScenariumError as fault:
        return str(fault)
    return None


def free_port() -> int:
    """A port that nobody listens on."""
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


def start(folder: Path, models: Path, *options: str) -> Server:
    """A server over a model repository. Its log is ``triton.log`` in ``folder``."""
    ports = (free_port(), free_port(), free_port())
    return Server(FOLDER, models, ports, log=folder / "triton.log", options=options)
