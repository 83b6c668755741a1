"""Fault: outputs are normalised over the batch, so neighbours influence each other."""

from __future__ import annotations

from healthy import *


@hookimpl(wrapper=True)
def predict_batch() -> Any:
    outputs = yield
    mean = np.mean([output["logits"] for output in outputs], axis=0)
    return [{"logits": output["logits"] - 0.5 * mean} for output in outputs]
