"""Checks of a small training by the real pipeline, of the version that it wrote, and of loading it."""

from __future__ import annotations

import copy
import math
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from scenarium.core.difference import difference
from scenarium.core.errors import ScenariumError, Words
from scenarium.core.kit.checks import NotApplicable, check
from scenarium.core.kit.probe import Killed
from scenarium.core.kit.subject import STEPS, Subject
from scenarium.core.runtime import Runtime

WEIGHTS = "model.safetensors"
STEP_SECONDS = 20.0


@check("bronze", "train", "短训练可以完成并提交一个版本", after=("state-json", "sample-valid", "encode-arrays"))
def trains(s: Subject) -> None:
    """A short training commits a version"""
    assert s.trained


@check("bronze", "train", "在 CPU 上训练一步少于 20 秒", after=("trains",))
def train_time(s: Subject) -> None:
    """One training step on the CPU takes less than 20 s"""
    assert s.trained
    stamps = s.probe.losses
    seconds = (stamps[-1] - stamps[0]) / (len(stamps) - 1) if len(stamps) > 1 else s.probe.train_seconds
    if seconds > STEP_SECONDS:
        raise ScenariumError("SCN-7401", seconds=round(seconds, 1), limit=STEP_SECONDS)


@check("bronze", "train", "可以在保留数据上评估", after=("trains", "answer-count", "answer-valid"))
def evaluates(s: Subject) -> None:
    """A version can be measured on held-out rows"""
    assert s.trained
    if fault := s.probe.evaluation_fault:
        raise fault


@check("bronze", "train", "score 返回 metric 指定的指标，且为有限值", after=("evaluates",))
def metric_in_score(s: Subject) -> None:
    """The primary metric is among what score returns, and finite"""
    manifest = s.trained.manifest
    value = manifest.metrics.get(manifest.metric.name)
    if value is None or not math.isfinite(value):
        raise ScenariumError("SCN-7402", metric=manifest.metric.name, value=value, known=", ".join(manifest.metrics) or "-")


@check("silver", "train", "score 没有副作用，同样的输入得到同样的结果", after=("metric-in-score",))
def score_pure(s: Subject) -> None:
    """Score is pure: the same rows and answers give the same figures, and stay as they are"""
    evaluation = s.hook.evaluate(config=s.config, runtime=s.runtime, rows=s.data.test)
    rows, answers = evaluation.rows, evaluation.answers
    kept = copy.deepcopy((rows, answers))
    first, second = (dict(s.hook.score(config=s.config, rows=rows, answers=answers)) for _ in range(2))
    if found := difference(first, second) or difference(kept, (rows, answers)):
        raise ScenariumError("SCN-7403", reason=found)


@check("bronze", "train", "版本中没有 pickle 文件", after=("trains",))
def no_pickle(s: Subject) -> None:
    """The version holds no pickle"""
    for name in s.trained.manifest.files:
        if _is_pickle(s.trained.folder / name):
            raise ScenariumError("SCN-7404", file=name)


@check("bronze", "train", "训练只写入 run.out 和 run.work", after=("trains",))
def writes_inside(s: Subject) -> None:
    """The training writes into run.out and run.work alone"""
    assert s.trained
    if s.probe.written:
        raise ScenariumError("SCN-7405", file=s.probe.written[0], count=len(s.probe.written))


@check("silver", "train", "累积梯度等于大批次的梯度", after=("trains",))
def accumulation(s: Subject) -> None:
    """The gradient of ragged micro-batches equals that of the one big batch"""
    _shared_trainer(s)
    import torch

    state = dict(s.hook.fit(config=s.config, rows=s.data.train))
    signature = s.hook.signature(config=s.config, state=state)
    processor = s.hook.processor(config=s.config, state=state)
    items = s.hook.items(config=s.config, processor=processor, rows=s.data.train, split="train")
    encoded = [s.hook.encode(config=s.config, processor=processor, item=items[i], rng=None) for i in range(min(12, len(items)))]
    module = s.hook.model(config=s.config, state=state).eval()

    def gradient(parts: list[slice]) -> Any:
        """Of sum of sums over sum of counts, which is what the trainer computes. Evaluation mode: no dropout, fixed norms."""
        module.zero_grad()
        total, count = torch.zeros(()), 0.0
        for part in parts:
            arrays = s.hook.collate(config=s.config, signature=signature, batch=encoded[part])
            batch = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
            loss, weight = s.hook.loss(config=s.config, signature=signature, model=module, batch=batch)
            total, count = total + loss, count + float(weight)
        torch.autograd.backward(total / count)
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])

    big, small = gradient([slice(None)]), gradient([slice(0, 3), slice(3, 7), slice(7, None)])
    apart = float((big - small).norm() / big.norm().clamp_min(1e-12))
    if not apart < 1e-3:
        raise ScenariumError("SCN-7406", apart=f"{apart:.2%}")


@check("silver", "train", "中断后继续训练得到相同的权重", after=("trains", "augmentation-seeded"))
def resume(s: Subject) -> None:
    """A training killed after two steps and resumed gives the weights of an unbroken one"""
    _shared_trainer(s)
    straight = _tensors(s.trained.folder / WEIGHTS)
    try:
        with s.killed_at(STEPS // 2 + 1):
            s.train("resumed", "killed", export=False)
    except Killed:
        pass
    version = s.train("resumed", "killed", resume=True, export=False)
    if (ran := len(s.probe.losses)) > STEPS // 2:
        told = Words(f"{ran} steps were run again instead of {STEPS // 2}", f"重新运行了 {ran} 步，而不是 {STEPS // 2} 步")
        raise ScenariumError("SCN-7407", reason=told)
    if found := difference(straight, _tensors(version.folder / WEIGHTS)):
        raise ScenariumError("SCN-7407", reason=found)


@check("silver", "train", "保存后载入的模型与训练出的模型输出相同", after=("trains", "deterministic"))
def save_load(s: Subject) -> None:
    """The loaded model answers as the trained one did"""
    if s.probe.module is None or "load" in s.implemented or not (s.trained.folder / WEIGHTS).is_file():
        raise NotApplicable("the plugin loads by itself", "插件自行载入模型")
    from safetensors.torch import load_model

    from scenarium.core.engines.torch_engine import TorchEngine

    # The trainer may have kept the best weights rather than the last; what the file does not hold is still in the module.
    load_model(s.probe.module, s.trained.folder / WEIGHTS)
    memory = TorchEngine(s.probe.module, s.runtime.signature, "cpu")
    items = [s.hook.preprocess(config=s.config, processor=s.runtime.processor, request=request) for request in s.requests[:1]]
    kept, loaded = (s.hook.predict_batch(config=s.config, signature=s.runtime.signature, model=model, batch=items) for model in (memory, s.runtime.model))
    if found := difference(list(kept), list(loaded), s.runtime.traits.tolerance):
        raise ScenariumError("SCN-7408", reason=found)


@check("silver", "train", "载入时使用版本中的权重", after=("trains", "deterministic"))
def weights_used(s: Subject) -> None:
    """Other weights in the version's file give other answers"""
    if not (s.trained.folder / WEIGHTS).is_file():
        raise NotApplicable("the version has no model.safetensors", "版本中没有 model.safetensors")
    from safetensors.torch import load_file, save_file

    folder = s.work / "other-weights"
    shutil.copytree(s.trained.folder, folder)
    tensors = load_file(folder / WEIGHTS)
    # Rolled and scaled: another function with every value's sign kept, so that variances stay positive.
    save_file({n: (t.flatten().roll(1) * 1.3).reshape(t.shape).contiguous() if t.is_floating_point() else t for n, t in tensors.items()}, folder / WEIGHTS)
    try:
        other = Runtime(s.runtime.scenario, s.runtime.state, folder, traits=s.runtime.traits)
        items = [s.hook.preprocess(config=s.config, processor=other.processor, request=request) for request in s.requests]
        now = [outputs(other, [item]) for item in items]
    except Exception:
        # Broken by the change, so the weights are used.
        return
    if not difference([outputs(s.runtime, [item]) for item in items], now):
        raise ScenariumError("SCN-7409")


@check("gold", "train", "导出的模型与 torch 模型的输出一致", after=("trains", "deterministic"))
def export_parity(s: Subject) -> None:
    """The export answers as the torch model does, on the sample and on held-out rows"""
    if "model.onnx" not in s.trained.manifest.files:
        told = s.trained.manifest.tags.get("export", "")
        if s.probe.exported:
            # The pipeline compares too, and leaves out an export that answers otherwise.
            raise ScenariumError("SCN-7411", reason=told.partition(": ")[2] or told)
        raise NotApplicable("the version has no export", "该版本没有导出文件")
    exported = s.open_runtime("onnx")
    for request in s.requests:
        item = s.hook.preprocess(config=s.config, processor=s.runtime.processor, request=request)
        if found := difference(outputs(s.runtime, [item]), outputs(exported, [item]), s.runtime.traits.tolerance):
            raise ScenariumError("SCN-7410", reason=found, tolerance=s.runtime.traits.tolerance)


def outputs(runtime: Runtime, items: list[Any]) -> list[Any]:
    """What ``predict_batch`` returns for ``items``."""
    hook, config = runtime.scenario.hook, runtime.scenario.config
    return list(hook.predict_batch(config=config, signature=runtime.signature, model=runtime.model, batch=items))


def _shared_trainer(s: Subject) -> None:
    if "train" in s.implemented:
        raise NotApplicable("the plugin trains by itself", "插件自行训练")


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(path))


def _is_pickle(path: Path) -> bool:
    """By content: a pickle begins with its protocol and ends with STOP; torch.save makes a zip with a pickle in it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    content = path.read_bytes()
    return (content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05" and content[-1:] == b".") or path.suffix in (".pkl", ".pickle", ".joblib")
