"""Fault: the longest text so far changes later answers."""

from __future__ import annotations

import healthy
from healthy import *

longest = [1]


@hookimpl
def postprocess(processor: Mapping[str, Any], request: Ask, output: Mapping[str, np.ndarray]) -> Answer:
    longest[0] = max(longest[0], len(request.text))
    answer = healthy.postprocess(processor, output)
    return answer.model_copy(update={"probability": answer.probability * len(request.text) / longest[0]})
