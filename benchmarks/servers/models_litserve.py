"""A real model behind LitServe with its batching: ``models_litserve.py PORT MODEL VERSION THREADS WORKERS BATCH WAIT_S``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import torch
from models import MODELS


class Real(litserve.LitAPI):
    def setup(self, device: str) -> None:
        torch.set_num_threads(int(sys.argv[4]))
        self.model = MODELS[sys.argv[2]](Path(sys.argv[3]))

    def decode_request(self, request):  # an annotation would become a query parameter
        return self.model.read(request[self.model.field])

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, batch: list[Any]) -> np.ndarray:
        return self.model.forward(batch)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        return self.model.answer(output)


if __name__ == "__main__":
    _, port, _, _, _, workers, batch, wait = sys.argv
    api = Real(max_batch_size=int(batch), batch_timeout=float(wait))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(workers), timeout=60)
    server.run(port=int(port), log_level="error", access_log=False, generate_client_file=False)
