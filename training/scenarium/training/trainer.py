"""The training loop."""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import save_model

from scenarium.core.config import ScenarioConfig
from scenarium.core.pipeline import Run
from scenarium.core.types import Data


def fit(config: ScenarioConfig, data: Data, run: Run) -> None:
    """Train the scenario's model and write its weights."""
    hook = run.scenario.hook
    torch.manual_seed(config.train.seed)
    processor = hook.processor(config=config, state=run.state)
    signature = hook.signature(config=config, state=run.state)
    model = hook.model(config=config, state=run.state)
    optimizer = hook.optimizer(config=config, model=model)
    items = hook.items(config=config, processor=processor, rows=data.train, split="train")
    model.train()
    step = 0
    for epoch in range(config.train.epochs):
        order = np.random.default_rng((config.train.seed, epoch)).permutation(len(items))
        for start in range(0, len(order), config.train.batch_size):
            encoded = [
                hook.encode(config=config, processor=processor, item=items[i], rng=np.random.default_rng((config.train.seed, epoch, int(i))))
                for i in order[start : start + config.train.batch_size]
            ]
            arrays = hook.collate(config=config, signature=signature, batch=encoded)
            batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
            total, count = hook.loss(config=config, signature=signature, model=model, batch=batch)
            loss = total / count
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            run.log(step, loss=loss.item())
    save_model(model, str(run.out / "model.safetensors"))
