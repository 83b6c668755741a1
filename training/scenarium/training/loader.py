"""Training items as batches on the device: row order, encoding, and a cache for items that are the same in every epoch.

An epoch's order is a permutation seeded by (seed, epoch). It is cut into chunks of ``batch_size`` items, the last one shorter; a
chunk is one micro-batch. Which chunk is whose depends on nothing else, so a resumed run sees every item once.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pluggy
import torch

from scenarium.core.config import ScenarioConfig
from scenarium.core.errors import ScenariumError
from scenarium.core.registry import Scenario
from scenarium.core.relay import direct
from scenarium.core.types import Signature, SplitName

CACHE_SHARE = 4
"""Encoded items may fill one part in so many of the memory that is free."""

Tensors = dict[str, torch.Tensor]


class Loader:
    """The items of one split."""

    def __init__(
        self, scenario: Scenario, config: ScenarioConfig, processor: Any, signature: Signature, items: Sequence[Any], device: torch.device, split: SplitName
    ) -> None:
        self.name, self.hook = scenario.name, scenario.hook
        self.encode, self.collate = direct(self.hook.encode), direct(self.hook.collate)
        self.config, self.processor, self.signature, self.device = config, processor, signature, device
        self.items = items
        self.size = config.train.batch_size
        self.training = split == "train"
        self.cached: list[Mapping[str, np.ndarray]] | None = None
        self.stacked: Tensors | None = None

    @property
    def chunks(self) -> int:
        """Chunks of one epoch."""
        return -(-len(self.items) // self.size)

    def cache(self) -> None:
        """Encode everything once, where the plugin's ``encode`` takes no ``rng`` and memory allows.

        Items of one shape are joined into one tensor a name, if ``collate`` is the default: a batch is then a slice.
        """
        if self.training and _uses(self.hook.encode, "rng"):
            return
        budget = _free_memory() // CACHE_SHARE
        encoded: list[Mapping[str, np.ndarray]] = []
        for index in range(len(self.items)):
            encoded.append(self._encode(0, index))
            budget -= sum(np.asarray(array).nbytes for array in encoded[-1].values())
            if budget < 0:
                return
        self.cached = encoded
        shapes = {tuple((name, np.shape(array)) for name, array in item.items()) for item in encoded}
        if len(shapes) == 1 and _is_default(self.hook.collate):
            self.stacked = {name: torch.from_numpy(np.stack([item[name] for item in encoded])) for name in encoded[0]}
            self.cached = None

    def epoch(self, epoch: int, wanted: Sequence[int]) -> Generator[Tensors, None, None]:
        """The chunks ``wanted`` of an epoch, in that order. The one past the end is served as the first, for ranks that run empty."""
        count = len(self.items)
        order = np.random.default_rng((self.config.train.seed, epoch)).permutation(count) if self.training else np.arange(count)
        if self.stacked is not None:
            yield from self._slices(order, wanted)
            return
        batches = (self._batch(epoch, order, chunk if chunk < self.chunks else 0) for chunk in wanted)
        # A GPU computes while the next batch is made; on a CPU both would share the same cores.
        yield from _ahead(batches) if self.device.type == "cuda" else batches

    def _slices(self, order: np.ndarray, wanted: Sequence[int]) -> Generator[Tensors, None, None]:
        assert self.stacked is not None
        rows = torch.from_numpy(order)
        names = list(self.stacked)
        chunks = list(zip(*(torch.split(self.stacked[name].index_select(0, rows), self.size) for name in names), strict=True))
        for chunk in wanted:
            batch = dict(zip(names, chunks[chunk if chunk < len(chunks) else 0], strict=True))
            yield batch if self.device.type == "cpu" else self._to_device(batch)

    def _batch(self, epoch: int, order: np.ndarray, chunk: int) -> Tensors:
        indices = order[chunk * self.size : (chunk + 1) * self.size]
        encoded = [self._encode(epoch, int(index)) for index in indices] if self.cached is None else [self.cached[index] for index in indices]
        arrays = self.collate(config=self.config, signature=self.signature, batch=encoded)
        batch = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        return batch if self.device.type == "cpu" else self._to_device(batch)

    def _to_device(self, batch: Tensors) -> Tensors:
        return {name: tensor.pin_memory().to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def _encode(self, epoch: int, index: int) -> Mapping[str, np.ndarray]:
        rng = np.random.default_rng((self.config.train.seed, epoch, index)) if self.training else None
        encoded: Mapping[str, np.ndarray] | None = self.encode(config=self.config, processor=self.processor, item=self.items[index], rng=rng)
        if encoded is None:
            raise ScenariumError(
                "SCN-3006", name=self.name, reason_en="the plugin does not implement the hook 'encode'", reason_zh="插件没有实现 'encode' 钩子"
            )
        return encoded


def missing(name: str, hook: str) -> ScenariumError:
    """The error of a plugin without a hook that the shared trainer needs."""
    return ScenariumError("SCN-3006", name=name, reason_en=f"its plugin does not implement the hook {hook!r}", reason_zh=f"插件没有实现 {hook!r} 钩子")


def _ahead(batches: Iterator[Tensors], depth: int = 2) -> Generator[Tensors, None, None]:
    """Run ``batches`` in a thread, up to ``depth`` ahead; an error of it is raised here, and closing ends the thread."""
    ready: queue.Queue[tuple[Tensors | None, BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def work() -> None:
        error: BaseException | None = None
        try:
            for batch in batches:
                while not closed.is_set():
                    with suppress(queue.Full):
                        ready.put((batch, None), timeout=0.1)
                        break
                if closed.is_set():
                    return
        except BaseException as fault:
            error = fault
        while not closed.is_set():
            with suppress(queue.Full):
                ready.put((None, error), timeout=0.1)
                break

    thread = threading.Thread(target=work, name="scenarium-loader", daemon=True)
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            if batch is None:
                return
            yield batch
    finally:
        closed.set()
        thread.join()


def _uses(hook: pluggy.HookCaller, argument: str) -> bool:
    """Whether an implementation of ``hook`` takes ``argument``."""
    return any(argument in implementation.argnames for implementation in hook.get_hookimpls())


def _is_default(hook: pluggy.HookCaller) -> bool:
    """Whether only the core's default implements ``hook``."""
    return all(implementation.plugin_name == "defaults" for implementation in hook.get_hookimpls())


def _free_memory() -> int:
    """Bytes that this process may still take: the machine's, or its control group's where that is less. 4 GiB where unknown."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
        found.append(int(line.split()[1]) * 1024)
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(min(found, default=4 << 30), 0)
