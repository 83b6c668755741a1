"""The ways of training that ``benchmarks.trainer`` compares: ``python -m benchmarks.trainer_ways WAY FD``, cases on standard input."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class Case(NamedTuple):
    """What is trained."""

    steps: int
    batch: int
    shape: tuple[int, ...]


CASES = {"toy": Case(1500, 8, (8,)), "transformer": Case(50, 32, (16, 64))}
stamps: list[tuple[float, float]] = []
"""Processor time of the process and wall clock at every forward."""


class Net(torch.nn.Module):
    """``Linear(8, 2)``, or two encoder layers (d 64, 4 heads, ff 256) over 16 positions; stamps every forward."""

    def __init__(self, case: str) -> None:
        super().__init__()
        if case == "toy":
            self.body: torch.nn.Module = torch.nn.Identity()
            self.head = torch.nn.Linear(8, 2)
        else:
            layer = torch.nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
            self.body = torch.nn.TransformerEncoder(layer, 2)
            self.head = torch.nn.Linear(64, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        stamps.append((time.process_time(), time.perf_counter()))
        hidden = self.body(x)
        logits = self.head(hidden if hidden.ndim == 2 else hidden.mean(1))
        return logits if labels is None else {"loss": functional.cross_entropy(logits, labels)}


@cache
def rows(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All rows, in the order in which the shared trainer takes them."""
    steps, batch, shape = CASES[case]
    rng = np.random.default_rng(1)
    x = rng.standard_normal((steps * batch, *shape), dtype=np.float32)
    y = (x.reshape(len(x), -1)[:, :8].sum(1) > 0).astype(np.int64)
    order = np.random.default_rng((0, 0)).permutation(len(x))
    return torch.from_numpy(x[order]), torch.from_numpy(y[order])


def start(case: str) -> tuple[Net, torch.optim.Optimizer]:
    """The untrained net and its optimizer."""
    torch.manual_seed(0)
    net = Net(case)
    return net, adamw(net)


def adamw(net: torch.nn.Module, fused: bool = False) -> torch.optim.Optimizer:
    """One group, all weights decayed, as the peers' examples have it."""
    return torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01, fused=fused)


def loader(case: str) -> DataLoader[Any]:
    """The usual way to batches, without workers and in order."""
    return DataLoader(TensorDataset(*rows(case)), batch_size=CASES[case].batch)


def plain(case: str) -> Net:
    """What anyone writes by hand."""
    net, optimizer = start(case)
    return loop(net, optimizer, loader(case))


def loop(net: Net, optimizer: torch.optim.Optimizer, batches: Any) -> Net:
    """Forward, loss, backward, step; the loss is read every 10 steps."""
    for step, (x, y) in enumerate(batches):
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            loss.item()
    return net


def plain_our_loader(case: str) -> Net:
    """The same loop, fed as the shared trainer feeds itself."""
    net, optimizer = start(case)
    x, y = rows(case)
    return loop(net, optimizer, zip(torch.split(x, CASES[case].batch), torch.split(y, CASES[case].batch), strict=True))


def ours(case: str, fused: bool) -> Net:
    """The shared trainer with its bar, curves and checkpoint."""
    from scenarium.core import Data, ScenarioConfig, Signature, TensorSpec, TrainConfig, hookimpl
    from scenarium.core.config import Settings
    from scenarium.core.pipeline import Run
    from scenarium.core.progress_view import Bar
    from scenarium.core.registry import Plugin, Scenario
    from scenarium.training import plugin as defaults
    from scenarium.training.trainer import fit

    batch, shape = CASES[case][1:]
    x, y = (tensor.numpy() for tensor in rows(case))
    # The trainer shuffles; undoing its permutation first gives everyone the same order.
    back = np.argsort(np.random.default_rng((0, 0)).permutation(len(x)))
    made: list[Net] = []

    class Toy:
        @hookimpl
        def signature(self) -> Signature:
            return Signature((TensorSpec("x", "float32", shape),), (TensorSpec("logits", "float32", (2,)),))

        @hookimpl
        def model(self) -> Net:
            made.append(Net(case))
            return made[0]

        @hookimpl
        def encode(self, item: Any) -> dict[str, np.ndarray]:
            return item  # type: ignore[no-any-return]

        @hookimpl
        def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
            return adamw(model, fused)

    train = TrainConfig(epochs=1, batch_size=batch, lr=1e-3, schedule="constant", warmup=0, clip=None, precision="fp32", threads=1)
    config = ScenarioConfig(train=train)
    scenario = Scenario("toy", Plugin("toy", "", "toy", "0"), Settings({}, None), {"training": defaults})
    scenario.__dict__["implementation"] = Toy()
    items = [{"x": x[index], "labels": y[index]} for index in back]
    with tempfile.TemporaryDirectory() as folder:
        job = Run(scenario, Path(folder), Path(folder), {}, progress=Bar())
        fit(config, Data(items, [], [], "generated", {}), job)
    return made[0]


def ours_same(case: str) -> Net:
    """The shared trainer with the loop's own optimizer."""
    return ours(case, fused=False)


def ours_default(case: str) -> Net:
    """The shared trainer with fused AdamW."""
    return ours(case, fused=True)


def accelerate(case: str) -> Net:
    """The documented loop."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    net, optimizer = start(case)
    model, wrapped, batches = accelerator.prepare(net, optimizer, loader(case))
    for step, (x, y) in enumerate(batches):
        wrapped.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        accelerator.backward(loss)
        wrapped.step()
        if step % 10 == 0:
            loss.item()
    return net


def fabric(case: str) -> Net:
    """The documented loop."""
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment

    lightning = Fabric(accelerator="cpu", devices=1, plugins=[LightningEnvironment()])
    net, optimizer = start(case)
    model, wrapped = lightning.setup(net, optimizer)
    batches = lightning.setup_dataloaders(loader(case))
    for step, (x, y) in enumerate(batches):
        wrapped.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        lightning.backward(loss)
        wrapped.step()
        if step % 10 == 0:
            loss.item()
    return net


def hf(case: str) -> Net:
    """HF Trainer with settings made equal."""
    from transformers import Trainer, TrainingArguments

    net, optimizer = start(case)
    x, y = rows(case)
    items = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=CASES[case].batch,
            num_train_epochs=1,
            max_grad_norm=0,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            seed=0,
        )
        Trainer(net, arguments, train_dataset=items, optimizers=(optimizer, None)).train()
    return net


def lightning(case: str) -> Net:
    """Lightning with its bar and the CSV logger."""
    import lightning as pl
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.plugins.environments import LightningEnvironment

    net, optimizer = start(case)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            x, y = batch
            loss = functional.cross_entropy(self.net(x), y)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer

    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            logger=CSVLogger(folder),
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_model_summary=False,
            plugins=[LightningEnvironment()],
        )
        trainer.fit(Module(), loader(case))
    return net


def main(way: str, answers: int) -> None:
    """Answer cases until standard input ends."""
    torch.set_num_threads(1)
    with os.fdopen(answers, "w") as out:
        for line in sys.stdin:
            case = line.strip()
            stamps.clear()
            net: Net = globals()[way](case)
            kept = np.array(stamps[len(stamps) // 10 :])
            cpu, wall = (kept[-1] - kept[0]) / (len(kept) - 1) * 1e6
            weights = b"".join(tensor.detach().numpy().tobytes() for tensor in net.state_dict().values())
            out.write(json.dumps({"cpu": cpu, "wall": wall, "steps": len(stamps), "weights": hashlib.sha256(weights).hexdigest()}) + "\n")
            out.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
