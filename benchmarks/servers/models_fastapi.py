"""A real model in a plain FastAPI process, in its thread pool of as many threads as cores: ``models_fastapi.py PORT MODEL VERSION THREADS CORES``.

Each request is a forward of its own. With FastAPI's own 40 threads it is slower.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import torch
import uvicorn
from fastapi import FastAPI
from models import MODELS
from pydantic import create_model

_, port, name, version, threads, cores = sys.argv
torch.set_num_threads(int(threads))
model = MODELS[name](Path(version))
Ask = create_model("Ask", **{model.field: (str, ...)})


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = int(cores)
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
def predict(ask: Ask) -> dict[str, Any]:
    return model.answer(model.forward([model.read(getattr(ask, model.field))])[0])


if __name__ == "__main__":
    uvicorn.run(app, port=int(port), log_level="error", access_log=False, loop="uvloop", http="httptools")
