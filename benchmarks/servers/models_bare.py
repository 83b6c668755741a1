"""The bare forward in process: ``models_bare.py MODEL VERSION BATCH SECONDS`` with a request on stdin; prints items a second."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from models import MODELS

if __name__ == "__main__":
    _, name, version, size, seconds = sys.argv
    torch.set_num_threads(1)
    model = MODELS[name](Path(version))
    batch = [model.read(json.load(sys.stdin)[model.field])] * int(size)
    for _ in range(3):
        model.forward(batch)
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < float(seconds):
        model.forward(batch)
        done += int(size)
    print(json.dumps({"per_second": done / took}))
