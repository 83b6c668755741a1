"""The train hooks' defaults, joined to every relay as an extension. torch is imported when a hook is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scenarium.core.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch

    from scenarium.core.config import ScenarioConfig
    from scenarium.core.pipeline import Run
    from scenarium.core.types import Batch, Data, Signature


@hookimpl(trylast=True)
def loss(signature: Signature, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | int]:
    """Cross entropy of the first output against ``labels``; -100 is ignored."""
    import torch

    outputs = model(**{spec.name: batch[spec.name] for spec in signature.inputs})
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    likelihoods = logits.flatten(0, -2).float().log_softmax(-1)
    # What functional.cross_entropy calls (2: sum), with the count that it drops; counting again takes a twentieth of a small step.
    total, count = torch.ops.aten.nll_loss_forward(likelihoods, batch["labels"].flatten(), None, 2, -100)
    return total, count


@hookimpl(trylast=True)
def optimizer(config: ScenarioConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW; biases and norms (one-dimensional weights) do not decay."""
    import torch

    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": config.train.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.train.lr, fused=True)


@hookimpl(trylast=True)
def train(config: ScenarioConfig, data: Data, run: Run) -> bool:
    """The shared trainer."""
    from scenarium.training.trainer import fit

    fit(config, data, run)
    return True


@hookimpl(trylast=True)
def export(model: torch.nn.Module, signature: Signature, batch: Batch, out: Path) -> Sequence[str]:
    """``model.onnx`` with free batch and -1 axes."""
    from scenarium.training.export import export as write

    return write(model, signature, batch, out)
