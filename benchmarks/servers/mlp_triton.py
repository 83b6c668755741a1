"""The module of ``mlp_plugin`` in Triton's python backend: all requests of one dynamic batch in one forward, the weights from ``MLP_VERSION``.

NumPy is that of Triton's own environment, whose version its backend is made for; all else, torch among it, is the main environment's.
"""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb

site.addsitedir(os.environ["MLP_PACKAGES"])
sys.path.insert(0, os.environ["MLP_SERVERS"])
import mlp_plugin
import torch
from safetensors.torch import load_file


class TritonPythonModel:
    def initialize(self, args):
        torch.set_num_threads(1)
        self.module = mlp_plugin.model().eval()
        self.module.load_state_dict(load_file(Path(os.environ["MLP_VERSION"]) / "model.safetensors"))

    def execute(self, requests):
        arrays = [pb.get_input_tensor_by_name(request, "X").as_numpy() for request in requests]
        with torch.inference_mode():
            found = self.module(torch.from_numpy(np.concatenate(arrays))).numpy()
        ends = np.cumsum([len(array) for array in arrays])[:-1]
        return [pb.InferenceResponse([pb.Tensor("Y", part)]) for part in np.split(found, ends)]
