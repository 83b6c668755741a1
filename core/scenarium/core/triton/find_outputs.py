"""Tells the outputs of a model file as JSON; run by the interpreter of Triton's environment, which has what the model needs.

``find_outputs.py FILE INPUTS_JSON BATCHED``: inputs as ``[{"name", "dtype", "dims"}]``, NumPy's types, no batch axis. TorchScript knows no names and no
shapes of outputs, so it is run twice, with other lengths: what differs is a free length.
"""

import json
import sys
from typing import Any

import numpy as np


def of_onnx(path: str, inputs: list[dict[str, Any]], batched: bool) -> list[dict[str, Any]]:
    """As the file declares them."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    types = {"float": "float32", "double": "float64"}
    found = []
    for output in session.get_outputs():
        kind = output.type.removeprefix("tensor(").removesuffix(")")
        dims = [axis if isinstance(axis, int) else -1 for axis in output.shape[1 if batched else 0 :]]
        found.append({"name": output.name, "dtype": types.get(kind, kind), "dims": dims})
    return found


def of_torchscript(path: str, inputs: list[dict[str, Any]], batched: bool) -> list[dict[str, Any]]:
    """As two runs show them; they have no names."""
    import torch

    module = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    runs = []
    for rows, length in ((1, 8), (2, 12)):
        arrays = [np.zeros([*([rows] if batched else []), *(length if axis == -1 else axis for axis in each["dims"])], each["dtype"]) for each in inputs]
        with torch.inference_mode():
            answer = module(*map(torch.from_numpy, arrays))
        runs.append([tensor.numpy() for tensor in (answer if isinstance(answer, (tuple, list)) else (answer,))])
    found = []
    for one, two in zip(*runs, strict=True):
        skip = 1 if batched else 0
        dims = [a if a == b else -1 for a, b in zip(one.shape[skip:], two.shape[skip:], strict=True)]
        found.append({"name": "", "dtype": one.dtype.name, "dims": dims})
    return found


if __name__ == "__main__":
    file, listed, mode = sys.argv[1:]
    find = of_onnx if file.endswith(".onnx") else of_torchscript
    sys.stdout.write(json.dumps(find(file, json.loads(listed), mode == "batched")))
