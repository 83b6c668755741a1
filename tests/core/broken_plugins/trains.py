"""Fault: the network does not fit its inputs."""

from __future__ import annotations

from healthy import *


@hookimpl
def model() -> torch.nn.Module:
    import torch

    return torch.nn.Linear(3, 2)
