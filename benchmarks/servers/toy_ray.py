"""The toy model behind Ray Serve with its batching, one replica: ``toy_ray.py PORT``."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from starlette.requests import Request

sys.path.insert(0, str(Path(__file__).parent))
from toy_model import LABELS, forward, weights


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
class Toy:
    def __init__(self) -> None:
        self.layers = weights()

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.001)
    async def run(self, rows: list[np.ndarray]) -> list[dict[str, Any]]:
        output = forward(self.layers, np.stack(rows))
        best = output.argmax(axis=1)
        return [{"label": LABELS[index], "score": float(row[index])} for index, row in zip(best, output, strict=True)]

    async def __call__(self, request: Request) -> dict[str, Any]:
        asked = await request.json()
        return await self.run(np.asarray(asked["features"], dtype=np.float32))


if __name__ == "__main__":
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ray.init(include_dashboard=False, num_cpus=2, logging_level="error", runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}})
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Toy.bind(), route_prefix="/predict")
    stop.wait()
    serve.shutdown()
    ray.shutdown()
