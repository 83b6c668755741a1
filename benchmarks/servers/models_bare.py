"""The bare forward in process: ``models_bare.py MODEL VERSION`` with a request on the first line of stdin, then a line ``BATCH SECONDS`` for each
window; prints the items a second of each."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from models import MODELS

from scenarium.core import heap

if __name__ == "__main__":
    _, name, version = sys.argv
    torch.set_num_threads(1)
    heap.keep_freed()  # as a worker does
    model = MODELS[name](Path(version))
    item = model.read(json.loads(sys.stdin.readline())[model.field])
    for line in sys.stdin:
        size, seconds = line.split()
        batch = [item] * int(size)
        model.forward(batch)
        done, began = 0, time.perf_counter()
        while (took := time.perf_counter() - began) < float(seconds):
            model.forward(batch)
            done += int(size)
        print(done / took, flush=True)
