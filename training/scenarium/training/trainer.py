"""The training loop.

One optimizer step takes ``accumulate`` micro-batches on each rank. The hook ``loss`` gives (sum, count) of a micro-batch; the
gradient is that of sum / count over all micro-batches of all ranks, so it equals the one big batch's, however ragged or masked
the parts are. Everything that decides a step (order, augmentation, dropout, rate) follows from the settings and the checkpoint,
so a killed run that resumes ends with the same bits.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import Any

import torch

from scenarium.core import heap
from scenarium.core.config import ScenarioConfig
from scenarium.core.engines.torch_engine import WEIGHTS
from scenarium.core.errors import ScenariumError
from scenarium.core.pipeline import Run
from scenarium.core.relay import direct
from scenarium.core.types import Data, SplitName
from scenarium.training import checkpoint, guards, schedule
from scenarium.training.distributed import Group
from scenarium.training.loader import Loader, Tensors, missing
from scenarium.training.meter import Meter
from scenarium.training.precision import Precision

CHECKPOINT_SECONDS = 60.0


def fit(config: ScenarioConfig, data: Data, job: Run) -> None:
    """Train the scenario's model and write the best checkpoint's weights into ``job.out``.

    Raises:
        ScenariumError: SCN-3002 (the loss is not finite), SCN-3003 (out of memory), SCN-3004 (stopped by a signal; a checkpoint
            is kept), SCN-3005 (a rank failed), SCN-3006 (nothing to train).
    """
    if config.train.nproc > 1:
        from scenarium.training import launch

        launch.run(config, data, job)
    else:
        train(config, data, job, Group.alone())


def train(config: ScenarioConfig, data: Data, job: Run, group: Group) -> None:
    """Train as one rank of ``group``."""
    with guards.threads(config.train), guards.memory(config.train):
        Trainer(config, data, job, group).run()


class Trainer:
    """One run in one process."""

    def __init__(self, config: ScenarioConfig, data: Data, job: Run, group: Group) -> None:
        self.config, self.settings, self.job, self.group = config, config.train, job, group
        self.hook = job.scenario.hook
        self.loss = direct(self.hook.loss)
        checkpoint.seed_all(self.settings.seed)
        self.signature = self.hook.signature(config=config, state=job.state)
        self.loader, self.held_out = self._loaders(data)
        self.module = self._module()
        self.optimizer: torch.optim.Optimizer = self.hook.optimizer(config=config, model=self.module)
        self.model = group.wrap(self.module, self._probe)
        if group.world > 1:
            # The weights were drawn alike everywhere; dropout must not be.
            checkpoint.seed_all(self.settings.seed + group.rank)
        self.precision = Precision.choose(self.settings.precision, group.device)
        self.autocast, self.scaler = self.precision.autocast(), self.precision.scaler()
        self.weights = [weight for part in self.optimizer.param_groups for weight in part["params"]]
        self.rates = [float(part["lr"]) for part in self.optimizer.param_groups]

        self.stride = self.settings.accumulate * group.world
        self.epoch_steps = -(-self.loader.chunks // self.stride)
        self.total = self.settings.epochs * self.epoch_steps
        if self.settings.max_steps:
            self.total = min(self.total, self.settings.max_steps)
        self.warmup = schedule.warmup_steps(self.settings, self.total)
        self.step = 0
        self.best: float | None = None
        self.worse = 0
        self.on_cpu = group.device.type == "cpu"
        self.told = self.stop = self.due = False
        self.saved = time.monotonic()
        self.meter = Meter(job, self.total)

    def run(self) -> None:
        """Train to the end, or to where ``patience`` gives up, and write the weights."""
        best = self.job.work / checkpoint.BEST
        if not (self.job.resume and self._resume()) and self.group.rank == 0:
            best.unlink(missing_ok=True)
        # With less than an epoch to go, encoding every item would take longer than it saves.
        if self.total >= self.epoch_steps:
            self.loader.cache()
        self.held_out.cache()
        if self.on_cpu:
            heap.keep_freed()  # what one step keeps for its gradients, the next one writes anew
        progress = self.job.progress
        progress.note(f"{self.group.device.type}, {self.precision.name}: {len(self.loader.items)} items, {self.total} steps of {self._rows(1)} items")
        progress.start("train", self.total)
        progress.advance(self.step)
        self.model.train()
        self.meter.start()
        with guards.interrupts(self):
            while self.step < self.total and not (self.settings.patience and self.worse >= self.settings.patience):
                self._epoch(*divmod(self.step, self.epoch_steps))
        progress.finish()
        if self.group.rank == 0:
            if not best.is_file():
                checkpoint.save_weights(best, self.module)
            shutil.copyfile(best, self.job.out / WEIGHTS)

    def _epoch(self, epoch: int, first: int) -> None:
        """The steps of an epoch from ``first`` on, then validation and a checkpoint."""
        rank, world = self.group.rank, self.group.world
        # Chunks are dealt in turn: rank r takes r, r + world, … The last round is filled up, so that all ranks take part in it.
        full = -(-self.loader.chunks // world) * world
        steps = [range(start + rank, min(start + self.stride, full), world) for start in range(first * self.stride, self.loader.chunks, self.stride)]
        steps = steps[: self.total - self.step]
        with closing(self.loader.epoch(epoch, [chunk for chunks in steps for chunk in chunks])) as batches:
            for chunks in steps:
                self._step(batches, chunks)
                if self.step < self.total and self.step % self.epoch_steps:
                    self._pause()
        self._validate()
        self._save()
        self._stop_if_told()

    def _step(self, batches: Iterator[Tensors], chunks: range) -> None:
        """One optimizer step over the micro-batches ``chunks``."""
        alone = len(chunks) == 1 and self.group.world == 1
        # Several micro-batches are divided by a constant first and rescaled once the whole count is known.
        divisor = self.settings.batch_size * len(chunks)
        losses: Any = 0.0
        counts: Any = 0
        for weight in self.weights:
            weight.grad = None  # as optimizer.zero_grad() does, without its profiling
        for chunk in chunks:
            batch = next(batches)
            with nullcontext() if chunk == chunks[-1] else self.group.no_sync(self.model):
                loss, count = self._loss(self.model, batch)
                if chunk >= self.loader.chunks:  # this rank ran out of items before the others
                    loss, count = loss * 0.0, 0
                self._backward(loss, _at_least_one(count) if alone else divisor)
            losses, counts = losses + (loss.item() if self.on_cpu else loss.detach()), counts + count
        if not alone:
            losses, counts = self._reduce(losses, counts)
        counts = _at_least_one(counts)
        rate = self._update(None if alone else divisor * self.group.world / counts)
        self.step += 1
        self.meter.update(self.step, losses / counts, rate, self._rows(self.step))

    def _loss(self, model: torch.nn.Module, batch: Tensors) -> tuple[torch.Tensor, Any]:
        """Sum and count of a batch; the count is a number on a CPU, and stays on a GPU, which must not be waited for."""
        with self.autocast:
            loss, count = self.loss(config=self.config, signature=self.signature, model=model, batch=batch)
        return loss, count.item() if self.on_cpu and isinstance(count, torch.Tensor) else count

    def _backward(self, loss: torch.Tensor, divisor: Any) -> None:
        """Add the gradients of ``loss / divisor``: 1 / divisor is what backward starts from, which saves the division and its derivative."""
        start = torch.ones_like(loss) / divisor if isinstance(divisor, torch.Tensor) else torch.full_like(loss, 1.0 / divisor)
        scaled: Any = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward(start)

    def _update(self, scale: Any) -> float:
        """Rescale and clip the gradients, set the learning rate, step. Returns the rate of the first group."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if scale is not None:
            torch._foreach_mul_([weight.grad for weight in self.weights if weight.grad is not None], scale)
        if self.settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.weights, self.settings.clip)
        factor = schedule.factor(self.settings.schedule, self.step, self.warmup, self.total)
        for part, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            part["lr"] = rate * factor
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return self.rates[0] * factor

    def _reduce(self, losses: torch.Tensor, counts: Any) -> tuple[Any, Any]:
        """The sums over all ranks; what the ranks must agree on (stop, save now) travels along."""
        if self.group.world == 1:
            return losses, counts
        told = torch.tensor([0.0, 0.0, self.told, self._is_due(self.step + 1)], dtype=torch.float64, device=self.group.device)
        told[0], told[1] = losses, counts
        losses, counts, stop, due = self.group.sum(told).tolist()
        self.stop, self.due = stop > 0, due > 0
        return losses, counts

    def _validate(self) -> None:
        """Loss on the validation items; keeps the weights if they are the best so far."""
        self.meter.flush()
        if not len(self.held_out.items):
            return
        sums = torch.zeros(2, dtype=torch.float64, device=self.group.device)
        self.model.eval()
        with torch.no_grad():
            for batch in self.held_out.epoch(0, range(self.group.rank, self.held_out.chunks, self.group.world)):
                loss, count = self._loss(self.module, batch)
                sums += torch.stack([torch.as_tensor(value, dtype=torch.float64, device=sums.device) for value in (loss, count)])
        self.model.train()
        total, count = self.group.sum(sums).tolist()
        value = total / max(count, 1.0)
        guards.finite(value, self.step, self.meter.rate)
        self.job.log(self.step, val_loss=value)
        self.meter.extra["val_loss"] = value
        self.worse += 1
        if self.best is None or value < self.best:
            self.best, self.worse = value, 0
            if self.group.rank == 0:
                checkpoint.save_weights(self.job.work / checkpoint.BEST, self.module)

    def _pause(self) -> None:
        """Between two steps: save if it is time, stop if told to."""
        if self.group.world == 1:
            self.due = self._is_due(self.step) or self.told
        if self.due or self.stop:
            self.meter.check()
            self._save()
        self._stop_if_told()

    def _is_due(self, step: int) -> bool:
        every = self.settings.checkpoint_steps
        return step % every == 0 if every else time.monotonic() - self.saved > CHECKPOINT_SECONDS

    def _stop_if_told(self) -> None:
        # Ranks stop together: each hears of the others' signals with the sums of a step.
        if self.stop or (self.told and self.group.world == 1):
            raise ScenariumError("SCN-3004", name=self.job.scenario.name, step=self.step, total=self.total)

    def _save(self) -> None:
        """Write the last checkpoint. All ranks call it, since each has its own random state."""
        random = self.group.gather(checkpoint.random_state(self.group.device))
        self.saved = time.monotonic()
        if self.group.rank:
            return
        state = {
            "step": self.step,
            "best": self.best,
            "worse": self.worse,
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "random": random,
            "meter": self.meter.state(),
            "curves": {name: [list(point) for point in points] for name, points in self.job.curves.items()},
        }
        checkpoint.save_last(self.job.work, state)

    def _resume(self) -> bool:
        """Go on from the last checkpoint, if there is one."""
        state = checkpoint.load_last(self.job.work)
        if state is None:
            self.job.progress.note("there is no checkpoint of a run with these settings and data: starting from the beginning")
            return False
        self.step, self.best, self.worse = state["step"], state["best"], state["worse"]
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        checkpoint.set_random_state(state["random"][self.group.rank], self.group.device)
        self.meter = Meter(self.job, self.total, self.step, self._rows(self.step), state["meter"])
        for name, points in state["curves"].items():
            for step, value in points:
                self.job.log(step, **{name: value})
        self.job.progress.note(f"resuming at step {self.step} of {self.total}")
        return True

    def _rows(self, step: int) -> int:
        """Items that the first ``step`` steps take."""
        epochs, steps = divmod(step, self.epoch_steps)
        count = len(self.loader.items)
        return epochs * count + min(steps * self.stride * self.settings.batch_size, count)

    def _loaders(self, data: Data) -> tuple[Loader, Loader]:
        processor = self.hook.processor(config=self.config, state=self.job.state)

        def loader(split: SplitName) -> Loader:
            items = self.hook.items(config=self.config, processor=processor, rows=data.rows(split), split=split)
            return Loader(self.job.scenario, self.config, processor, self.signature, items, self.group.device, split)

        found = loader("train"), loader("val")
        if not len(found[0].items):
            raise ScenariumError("SCN-3006", name=self.job.scenario.name, reason_en="there is nothing to train on", reason_zh="没有可用于训练的样本")
        return found

    def _module(self) -> torch.nn.Module:
        built: torch.nn.Module | None = self.hook.model(config=self.config, state=self.job.state)
        if built is None:
            raise missing(self.job.scenario.name, "model")
        return built.to(self.group.device)

    def _probe(self) -> None:
        with closing(self.loader.epoch(0, [0])) as batches:
            self.hook.loss(config=self.config, signature=self.signature, model=self.module, batch=next(batches))[0].backward()


def _at_least_one(count: Any) -> Any:
    """A batch whose targets are all masked has a loss of 0, not 0 / 0."""
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)
