"""The shared trainer. Public for plugins: ``fit``, which trains by the scenario's hooks and writes ``model.safetensors``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scenarium.training.trainer import fit as fit

__all__ = ["fit"]


def __getattr__(name: str) -> Any:
    # On first use, so that the relay's extension ``scenarium.training.plugin`` brings in no torch.
    if name == "fit":
        from scenarium.training.trainer import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
