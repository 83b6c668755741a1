"""The backends ``onnxruntime`` and ``pytorch`` of a Triton that was installed by pip, which brings the ``python`` backend alone.

Triton calls this file, as ``model.py`` of either, once a batch; it runs in the server's own environment, so it imports nothing of Scenarium. The model
repository stays the one that NVIDIA's container serves with its own backends of the same names.

Source: Triton's "Python-based backends".
"""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

THREADS = int(os.environ.get("SCENARIUM_THREADS", "1"))
Run = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]
FILES = {"onnxruntime": "model.onnx", "pytorch": "model.pt"}


def open_onnx(path: str, inputs: list[str], outputs: list[str]) -> Run:
    """A function from arrays in the order of ``inputs`` to arrays in that of ``outputs``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(outputs, dict(zip(inputs, arrays, strict=True)))


def open_torch(path: str, inputs: list[str], outputs: list[str]) -> Run:
    """The same for TorchScript: by the names of forward's own arguments, else in the order of the configuration."""
    import torch

    torch.set_num_threads(THREADS)
    module = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    named = [each.name for each in module.forward.schema.arguments[1:]]
    order = [inputs.index(name) for name in named] if set(named) == set(inputs) else range(len(inputs))

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            found = module(*(torch.from_numpy(arrays[place]) for place in order))
        return [tensor.numpy() for tensor in (found if isinstance(found, (tuple, list)) else (found,))]

    return run


class TritonPythonModel:
    """What Triton makes of this file, once an instance of a model."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """The configuration is complete; ``scenarium triton check`` completes one that is not."""
        return config

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model's file."""
        config = json.loads(args["model_config"])
        backend = config["backend"]
        self.inputs = [each["name"] for each in config["input"]]
        self.outputs = [each["name"] for each in config["output"]]
        path = os.path.join(args["model_repository"], args["model_version"], config.get("default_model_filename") or FILES[backend])
        self.run = (open_onnx if backend == "onnxruntime" else open_torch)(path, self.inputs, self.outputs)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run what Triton's batcher put together, whose rows have the same shapes, at once."""
        columns = [[pb.get_input_tensor_by_name(request, name).as_numpy() for request in requests] for name in self.inputs]
        found = self.run([np.concatenate(column) if len(column) > 1 else column[0] for column in columns])
        answers, start = [], 0
        for rows in map(len, columns[0]):
            part = [pb.Tensor(name, np.ascontiguousarray(array[start : start + rows])) for name, array in zip(self.outputs, found, strict=True)]
            answers.append(pb.InferenceResponse(part))
            start += rows
        return answers
