"""The ranks that train one model together: data parallel over gloo on CPUs and NCCL on GPUs.

A ``Group`` of one process does nothing and costs nothing, so the loop is written once. Sharded parameters, tensor and pipeline
parallelism belong behind ``wrap``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Group:
    """This process among those that train together."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @classmethod
    def alone(cls) -> Group:
        """One process on the first GPU, or on the CPU where there is none."""
        return cls(torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))

    @classmethod
    @contextmanager
    def join(cls) -> Iterator[Group]:
        """The group that torchrun's environment variables describe."""
        local, rank, world = (int(os.environ[name]) for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"))
        gpu = torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
        device = torch.device("cuda", local) if gpu else torch.device("cpu")
        if gpu:
            torch.cuda.set_device(device)
        # torchrun's agent keeps one store over its restarts: without a prefix a rank may read the address of a peer that is dead.
        store, _, _ = next(rendezvous("env://"))
        store = distributed.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)  # type: ignore[attr-defined]  # documented
        distributed.init_process_group("nccl" if gpu else "gloo", store=store, rank=rank, world_size=world, device_id=device if gpu else None)
        try:
            yield cls(device, rank, world)
        finally:
            distributed.destroy_process_group()

    def wrap(self, module: torch.nn.Module, probe: Callable[[], object]) -> torch.nn.Module:
        """The module as the loss sees it. ``probe`` runs one backward, which shows whether some weights get no gradient."""
        if self.world == 1:
            return module
        return Replica(module, find_unused_parameters=_has_unused(module, probe))

    def no_sync(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        """The context of a backward whose gradients are not yet exchanged."""
        return model.no_sync() if isinstance(model, Replica) else nullcontext()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            distributed.all_reduce(tensor)
        return tensor

    def gather(self, tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """Each rank's tensors (same names and shapes everywhere), by rank."""
        if self.world == 1:
            return [tensors]
        found: list[dict[str, torch.Tensor]] = [{} for _ in range(self.world)]
        for name, tensor in tensors.items():
            parts = [torch.empty_like(tensor, device=self.device) for _ in range(self.world)]
            distributed.all_gather(parts, tensor.to(self.device))
            for rank, part in enumerate(parts):
                found[rank][name] = part.to(tensor.device)
        return found


class Replica(DistributedDataParallel):
    """DDP that shows the wrapped module's own attributes too, since a plugin's loss may read them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def _has_unused(module: torch.nn.Module, probe: Callable[[], object]) -> bool:
    # In eval mode, so that neither dropout draws numbers nor running statistics move.
    module.eval()
    probe()
    unused = any(weight.grad is None for weight in module.parameters() if weight.requires_grad)
    module.zero_grad(set_to_none=True)
    module.train()
    return unused
