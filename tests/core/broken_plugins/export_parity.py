"""Fault: what is exported is another model than the one that was trained."""

from __future__ import annotations

from healthy import *


@hookimpl(wrapper=True)
def export(model: torch.nn.Module) -> Any:
    import torch

    with torch.no_grad():
        model.head.bias[0] += 1
        names = yield
        model.head.bias[0] -= 1
    return names
