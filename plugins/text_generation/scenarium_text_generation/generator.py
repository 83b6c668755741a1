"""Many generations at once by transformers' continuous batching, each a stream of tokens that can be cancelled."""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from scenarium_text_generation.sampling import Sampling, SeededSampler

END = object()


class Generator:
    """A loaded causal language model that answers many requests in one running batch.

    The batch starts with the first request, so that a worker which only loads the model starts no thread.
    """

    def __init__(self, model: Any, eos: list[int], blocks: int, batch_tokens: int) -> None:
        self.model = model
        self.eos = eos
        self._lock = threading.Lock()
        self._manager: Any = None
        self._streams: dict[str, queue.SimpleQueue[Any]] = {}
        # The automatic sizes suit a GPU; on a processor they make every step walk a mostly empty cache (10 times slower).
        self._batching = ContinuousBatchingConfig(num_blocks=blocks, max_batch_tokens=batch_tokens, use_async_batching=False)

    def stream(self, prompt: list[int], limit: int, sampling: Sampling) -> Iterator[int]:
        """Yield token ids, the end token included. Closing the iterator ends the generation.

        Raises:
            RuntimeError: the batch failed; its message is the cause.
        """
        name = uuid.uuid4().hex
        mine: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with self._lock:
            self._streams[name] = mine
            manager = self._running()
        sent, finished = 0, False
        try:
            manager.add_request(prompt, name, limit, streaming=True, eos_token_id=self.eos, sampling=sampling)
            while True:
                output = mine.get()
                if output is END or output.error:
                    raise RuntimeError(output.error if output is not END else "the generation loop ended")
                finished = output.is_finished()
                yield from output.generated_tokens[sent:]
                sent = len(output.generated_tokens)
                if finished:
                    return
        finally:
            self._streams.pop(name, None)
            # The manager would keep the name of a request that it no longer has for ever.
            if not finished:
                manager.cancel_request(name)

    def close(self) -> None:
        """End the batch and its threads."""
        if self._manager is not None:
            self._manager.stop(block=True, hard_stop=True)

    def _running(self) -> Any:
        """The manager, started on first use and again if its loop died."""
        if self._manager is None or not self._manager.is_running():
            config = GenerationConfig(do_sample=False, eos_token_id=self.eos, max_new_tokens=1)
            manager = self.model.init_continuous_batching(generation_config=config, continuous_batching_config=self._batching)
            sampler = manager.logit_processor
            sampler.logits_processor.append(SeededSampler())
            sampler.tensors_required += 1
            sampler.supported_keys["sampling"] = Sampling
            sampler.do_processing = True
            # manager.start() makes a thread that is no daemon: a process that forgets to close would never end.
            manager.background_thread_status.clear()
            manager._generation_thread = threading.Thread(target=manager._run_generation_loop, name="generation", daemon=True)
            manager._generation_thread.start()
            self._manager = manager
            threading.Thread(target=self._deliver, args=(manager,), name="generation results", daemon=True).start()
        return self._manager

    def _deliver(self, manager: Any) -> None:
        while manager.is_running():
            output = manager.get_result(timeout=0.2)
            if output is not None and (stream := self._streams.get(output.request_id)):
                stream.put(output)
        for stream in list(self._streams.values()):
            stream.put(END)


class CausalLM(torch.nn.Module):
    """The model as a pure function of token ids, for the trainer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """``input_ids``: int64 [N, length]. Returns logits [N, length, vocabulary]."""
        logits: torch.Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits
