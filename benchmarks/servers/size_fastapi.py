"""Raw bytes in the handler of one plain FastAPI process, which answers how many: ``size_fastapi.py PORT``."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, Request
from pydantic import BaseModel


class Answer(BaseModel):
    size: int


app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> Answer:
    return Answer(size=len(await request.body()))


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False, loop="uvloop", http="httptools")
