"""The same language model without a server: ``generation_direct.py VERSION THREADS``, then a line of JSON for each measurement.

``{"first": IDS}``: seconds until the model has given the first token, called as it is. ``{"many": [IDS, …], "tokens": N}``: tokens a second of
transformers' own continuous batching, with the settings that the plugin gives it. Greedy, as what it stands beside.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from scenarium.core.runtime import STATE
from scenarium_text_generation.settings import GenerationModel
from scenarium_text_generation.training import load


def first(model, ids):
    """Seconds for the first token."""
    began = time.perf_counter()
    int(model(torch.tensor([ids]), use_cache=True, logits_to_keep=1).logits[0, -1].argmax())
    return time.perf_counter() - began


def many(model, prompts, tokens, settings):
    """Tokens a second of all prompts together; the manager is started and ended outside of the time, so that it takes nothing from the server
    between its turns."""
    batching = ContinuousBatchingConfig(num_blocks=settings.cache_blocks, max_batch_tokens=settings.batch_tokens, use_async_batching=False)
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=tokens), continuous_batching_config=batching
    )
    manager.start()

    def answer(asked, count):
        for ids in asked:
            manager.add_request(ids, max_new_tokens=count)
        found = 0
        for _ in asked:
            output = manager.get_result(timeout=120)
            found += len(output.generated_tokens)
        return found

    try:
        answer(prompts[:1], 2)
        began = time.perf_counter()
        made = answer(prompts, tokens)
        return made / (time.perf_counter() - began)
    finally:
        manager.stop(block=True)


if __name__ == "__main__":
    version = Path(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]))
    # Two, since continuous batching gives a model another attention for good.
    single, batched = (load(json.loads((version / STATE).read_text()), version, "cpu").model for _ in range(2))
    for line in sys.stdin:
        asked = json.loads(line)
        with torch.inference_mode():
            value = first(single, asked["first"]) if "first" in asked else many(batched, asked["many"], asked["tokens"], GenerationModel())
        print(json.dumps(value), flush=True)
