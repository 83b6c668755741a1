"""The toy model in the handler of one plain FastAPI process: ``toy_fastapi.py PORT``."""

from __future__ import annotations

import sys
from typing import Annotated

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field
from toy_model import LABELS, forward, weights


class Ask(BaseModel):
    features: Annotated[list[float], Field(min_length=64, max_length=64)]


class Answer(BaseModel):
    label: str
    score: float


app = FastAPI()
layers = weights()


@app.post("/predict")
async def predict(ask: Ask) -> Answer:
    output = forward(layers, np.asarray([ask.features], dtype=np.float32))[0]
    best = int(output.argmax())
    return Answer(label=LABELS[best], score=float(output[best]))


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False, loop="uvloop", http="httptools")
