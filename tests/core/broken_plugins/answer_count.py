"""Fault: the last item of a batch gets no output."""

from __future__ import annotations

from healthy import *


@hookimpl(wrapper=True)
def predict_batch() -> Any:
    outputs = list((yield))
    return outputs[:-1] if len(outputs) > 1 else outputs
