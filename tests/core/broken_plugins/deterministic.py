"""Fault: the outputs are random."""

from __future__ import annotations

from healthy import *


@hookimpl(wrapper=True)
def predict_batch() -> Any:
    outputs = yield
    return [{"logits": output["logits"] + np.random.random(output["logits"].shape).astype(np.float32)} for output in outputs]
