"""Fault: the answer holds NaN, which is no JSON number."""

from __future__ import annotations

import healthy
from healthy import *


@hookimpl
def postprocess(processor: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> Answer:
    return healthy.postprocess(processor, output).model_copy(update={"probability": float("nan")})
