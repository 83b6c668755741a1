"""The settings of the plugin, and which method they come to."""

from __future__ import annotations

from typing import Literal

import pydantic

from scenarium.core import DataConfig, ModelConfig, ScenarioConfig, ScenariumError, TrainConfig


class DataSection(DataConfig):
    """Which data, and what a good part is called in it."""

    good: str = "good"
    """Label of parts without a defect. Rows without any label count as good."""


class Model(ModelConfig):
    """What is learned, and how."""

    task: Literal["anomaly", "classify"] = "anomaly"
    """`anomaly`: learn from good parts alone and score what differs. `classify`: name the defect; every row needs a label."""
    method: Literal["auto", "simulate", "patchcore", "padim"] = "auto"
    """How `anomaly` learns: on simulated defects (needs no pretrained weights), or by remembering pretrained features.
    `auto`: patchcore where `pretrained` names weights, else simulate."""
    backbone: str = "mobilenet_v2"
    """A torchvision network whose features patchcore and padim use; `classify` takes it when `pretrained` names weights."""
    pretrained: str = "none"
    """`none`, `hub` (torchvision's download), `package` (mobilenet_v2, needs data.accept_licence), or the path of a weights file."""
    size: int = pydantic.Field(128, ge=64, le=1024, multiple_of=32)
    """Side of the square that the network sees, pixels. Small defects need more."""
    patches: int = pydantic.Field(1000, ge=10)
    """Patches that patchcore remembers."""
    features: int = pydantic.Field(64, ge=4)
    """Features that padim keeps."""
    false_alarms: float = pydantic.Field(0.02, gt=0, lt=0.5)
    """Share of good parts that may exceed the threshold."""


class Train(TrainConfig):
    """The shared trainer's settings, with what suits parts."""

    epochs: int = pydantic.Field(24, gt=0)
    """Passes over the training rows."""
    batch_size: int = pydantic.Field(8, gt=0)
    """Rows of a micro-batch on one device."""
    lr: float = pydantic.Field(4e-3, gt=0)
    """Peak learning rate. Use about 3e-4 when a pretrained backbone is tuned."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """fp32: on a processor the default network's narrow layers gain nothing from bf16."""
    turn: bool = True
    """Mirror and turn training pictures by right angles at random. Switch it off where a part's position matters."""


class Config(ScenarioConfig):
    """Settings of defect detection."""

    data: DataSection = DataSection()
    model: Model = Model()
    train: Train = Train()


def chosen_method(config: Config) -> str:
    """``classify``, ``simulate``, ``patchcore`` or ``padim``.

    Raises:
        ScenariumError: SCN-3323: random features were asked to tell good from bad.
    """
    model = config.model
    if model.task == "classify":
        return "classify"
    if model.method == "auto":
        return "simulate" if model.pretrained == "none" else "patchcore"
    if model.method != "simulate" and model.pretrained == "none":
        raise ScenariumError("SCN-3323", method=model.method)
    return model.method
