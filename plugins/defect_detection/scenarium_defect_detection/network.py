"""The networks: one that is trained on simulated defects, one that names defect classes, and two that remember good parts.

All are pure tensor functions from ``image`` ``[B, 3, S, S]`` (normalised, float32) to ``map`` ``[B, h, w]`` and ``score`` ``[B]``
(the classifier: ``logits`` ``[B, classes]`` and ``evidence`` ``[B, classes, h, w]``), so any engine can run them.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch normalisation, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Encoder(nn.Module):
    """Features at strides 2, 4, 8 and 16."""

    widths = (16, 24, 48, 96)

    def __init__(self) -> None:
        super().__init__()
        deeper = [nn.Sequential(conv(a, b, 2), conv(b, b)) for a, b in itertools.pairwise(self.widths)]
        self.stages = nn.ModuleList([conv(3, self.widths[0], 2), *deeper])

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        found = []
        # The convolutions follow the memory format of their input; this one is a quarter faster on processors.
        image = image.contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            image = stage(image)
            found.append(image)
        return found


class Segmenter(nn.Module):
    """A small U-Net (Ronneberger et al., 2015): the log odds that each 4x4 cell is defective."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        _, *w = self.encoder.widths
        self.up = nn.ModuleList(conv(deep + shallow, shallow) for shallow, deep in itertools.pairwise(w))
        self.head = nn.Conv2d(w[0], 1, 1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, *stages = self.encoder(image)
        found = stages[-1]
        for level in range(len(self.up) - 1, -1, -1):
            wide = functional.interpolate(found, size=stages[level].shape[-2:], mode="nearest")
            found = self.up[level](torch.cat([wide, stages[level]], 1))
        return scored(self.head(found)[:, 0])


def scored(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The map, smoothed over 3x3 cells so that one cell alone says little, and its highest value."""
    smooth = functional.avg_pool2d(scores[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    return smooth, smooth.flatten(1).amax(1)


class Inspector(nn.Module):
    """Defect classes. The classes' evidence is a map and its mean are the logits (class activation maps, Zhou et al., 2016)."""

    def __init__(self, backbone: str, classes: int) -> None:
        super().__init__()
        found: tuple[nn.Module, int] = (Encoder(), Encoder.widths[-1]) if backbone == "small" else features(backbone)
        self.features, channels = found
        self.head = nn.Conv2d(channels, classes, 1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.features(image)
        evidence = self.head(found[-1] if isinstance(found, list) else found)
        return evidence.mean((2, 3)), evidence


def features(backbone: str) -> tuple[nn.Sequential, int]:
    """The convolutional part of a torchvision network with random weights, block by block, and its channels.

    Raises:
        ScenariumError: SCN-3301 (no such backbone), SCN-3302 (it has no convolutional part).
    """
    from scenarium.core.errors import ScenariumError, Words
    from scenarium.training import backbones

    network = backbones.build(backbone, 10, 224)
    blocks = getattr(network, "features", None)
    if not isinstance(blocks, nn.Sequential):
        if not hasattr(network, "layer4"):
            raise ScenariumError("SCN-3302", name=backbone, size=Words("any", "任何"), reason=Words("it has no feature maps", "它没有特征图"))
        stem = nn.Sequential(*(getattr(network, name) for name in ("conv1", "bn1", "relu", "maxpool")))
        blocks = nn.Sequential(stem, *(getattr(network, f"layer{number}") for number in range(1, 5)))
    last = [module for module in blocks.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)][-1]
    return blocks, int(last.out_channels if isinstance(last, nn.Conv2d) else last.num_features)


class Patches(nn.Module):
    """Locally averaged features of a pretrained network at strides 8 and 16, joined at stride 8 (Roth et al., CVPR 2022)."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.blocks, _ = features(backbone)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        side, wanted = image.shape[-1], {}
        for block in self.blocks:
            image = block(image)
            stride = round(side / image.shape[-1])
            if stride > 16:
                break
            wanted[stride] = image
        fine = wanted[8]
        coarse = functional.avg_pool2d(wanted[16], 3, 1, 1)
        wide = functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([functional.avg_pool2d(fine, 3, 1, 1), wide], 1)


class Memory(nn.Module):
    """PatchCore (Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022): distance to the nearest of the
    remembered patches of good parts. ``bank`` ``[K, C]`` holds them, ``scale`` ``[C]`` one over each feature's deviation."""

    bank: torch.Tensor
    scale: torch.Tensor

    def __init__(self, backbone: str, channels: int, patches: int) -> None:
        super().__init__()
        self.features = Patches(backbone)
        self.register_buffer("bank", torch.zeros(patches, channels))
        self.register_buffer("scale", torch.ones(channels))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.features(image)
        batch, channels, height, width = found.shape
        flat = found.permute(0, 2, 3, 1).reshape(-1, channels) * self.scale
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab: one matrix product, which every engine runs fast.
        distance = (flat * flat).sum(1, keepdim=True) + (self.bank * self.bank).sum(1) - 2 * flat @ self.bank.T
        nearest = distance.amin(1).clamp_min(1e-6).sqrt() / channels**0.5
        return scored(nearest.reshape(batch, height, width))


class Gaussian(nn.Module):
    """PaDiM (Defard et al., "PaDiM: a Patch Distribution Modeling Framework", ICPR 2020): Mahalanobis distance to the good parts'
    features at the same place. ``keep`` ``[D]`` is the random choice of features, ``mean`` ``[P, D]``, ``whiten`` ``[P, D, D]``."""

    keep: torch.Tensor
    mean: torch.Tensor
    whiten: torch.Tensor

    def __init__(self, backbone: str, places: int, kept: int) -> None:
        super().__init__()
        self.features = Patches(backbone)
        self.register_buffer("keep", torch.zeros(kept, dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(places, kept))
        self.register_buffer("whiten", torch.zeros(places, kept, kept))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.features(image).index_select(1, self.keep)
        batch, kept, height, width = found.shape
        apart = found.flatten(2).permute(2, 0, 1) - self.mean[:, None]
        # whiten is the Cholesky factor L of the inverse covariance: |(x - m) L|^2 is the squared Mahalanobis distance.
        distance = (apart @ self.whiten).square().sum(2).clamp_min(1e-6).sqrt() / kept**0.5
        return scored(distance.T.reshape(batch, height, width))
