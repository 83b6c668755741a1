"""The toy model behind LitServe with its batching: ``toy_litserve.py PORT``."""

from __future__ import annotations

import sys
from typing import Any

import litserve
import numpy as np
from toy_model import LABELS, forward, weights


class Toy(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.layers = weights()

    def decode_request(self, request):  # an annotation would become a query parameter
        return np.asarray(request["features"], dtype=np.float32)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, batch: np.ndarray) -> np.ndarray:
        return forward(self.layers, batch)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        best = int(output.argmax())
        return {"label": LABELS[best], "score": float(output[best])}


if __name__ == "__main__":
    server = litserve.LitServer(Toy(max_batch_size=32, batch_timeout=0.001), accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[1]), log_level="error", access_log=False, generate_client_file=False)
