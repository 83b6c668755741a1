"""Fault: a batch is sorted by its outputs and never put back."""

from __future__ import annotations

from healthy import *


@hookimpl(wrapper=True)
def predict_batch() -> Any:
    outputs = yield
    return sorted(outputs, key=lambda output: float(output["logits"][0]))
