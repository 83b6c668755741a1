"""Training that the shared trainer does not do: remembering good parts, and choosing the threshold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model

from scenarium.core import Row, ScenariumError, images
from scenarium.core.progress import Progress
from scenarium.training import backbones
from scenarium_defect_detection.network import Gaussian, Inspector, Memory, Patches, Segmenter

if TYPE_CHECKING:
    from scenarium_defect_detection import State
    from scenarium_defect_detection.settings import Config

COARSE = 128
"""Dimensions of the random projection in which the core set is chosen (Roth et al. 2022, section 3.2)."""
POOL = 10_000
"""Most patches that the core set is chosen from."""


def build(state: State) -> torch.nn.Module:
    """The network that ``state`` describes, with random weights and empty memories."""
    if state["method"] == "classify":
        return Inspector(state["backbone"], len(state["labels"]))
    if state["method"] == "simulate":
        return Segmenter()
    if state["method"] == "patchcore":
        return Memory(state["backbone"], state["channels"], state["patches"])
    return Gaussian(state["backbone"], state["places"], state["kept"])


def start_from(network: torch.nn.Module, config: Config) -> None:
    """Read pretrained weights into the convolutional part.

    Raises:
        ScenariumError: SCN-3303 to SCN-3306 (``scenarium.training.backbones``).
    """
    blocks: Any = network.features.blocks if isinstance(network, Memory | Gaussian) else network.features
    name = config.model.backbone
    given = backbones.read_weights(name, config.model.pretrained, config.data.accept_licence)
    whole: Any = backbones.build(name, 1000, 224)
    backbones.load_weights(whole, given, name)
    if isinstance(getattr(whole, "features", None), torch.nn.Sequential):
        blocks.load_state_dict(whole.features.state_dict())
    else:
        for position, part in enumerate(("conv1", "bn1")):
            blocks[0][position].load_state_dict(getattr(whole, part).state_dict())
        for number in range(1, 5):
            blocks[number].load_state_dict(getattr(whole, f"layer{number}").state_dict())


def shape_of_patches(backbone: str, size: int) -> tuple[int, int]:
    """Channels and places (height x width) of a backbone's patches for pictures of ``size`` pixels."""
    with torch.inference_mode():
        found = Patches(backbone).eval()(torch.zeros(1, 3, size, size))
    return int(found.shape[1]), int(found.shape[2] * found.shape[3])


def remember(network: Memory | Gaussian, rows: Sequence[Row], size: int, seed: int, progress: Progress) -> None:
    """Fill the memory with the features of good parts. No gradients."""
    network.eval()
    progress.start("features of good parts", len(rows))
    with torch.inference_mode():
        found = torch.cat([_advance(progress, network.features(batch)) for batch in batches(rows, size)])
    progress.finish()
    generator = torch.Generator().manual_seed(seed)
    if isinstance(network, Gaussian):
        _gaussian(network, found, generator)
    else:
        _core_set(network, found, generator, progress)


def _advance(progress: Progress, batch: torch.Tensor) -> torch.Tensor:
    progress.advance(len(batch))
    return batch


def _gaussian(network: Gaussian, found: torch.Tensor, generator: torch.Generator) -> None:
    network.keep.copy_(torch.randperm(found.shape[1], generator=generator)[: len(network.keep)].sort().values)
    patches = found.index_select(1, network.keep).flatten(2).permute(2, 0, 1)  # [P, N, D]
    mean = patches.mean(1, keepdim=True)
    apart = patches - mean
    covariance = apart.transpose(1, 2) @ apart / max(1, patches.shape[1] - 1)
    # The paper adds 0.01; relative to the features' own variance it fits any backbone.
    covariance += 0.01 * apart.square().mean() * torch.eye(patches.shape[2])
    network.mean.copy_(mean[:, 0])
    network.whiten.copy_(torch.linalg.cholesky(torch.linalg.inv(covariance)))


def _core_set(network: Memory, found: torch.Tensor, generator: torch.Generator, progress: Progress) -> None:
    """Greedy k-centre choice: each next patch is the one farthest from all that are remembered."""
    flat = found.permute(0, 2, 3, 1).reshape(-1, found.shape[1])
    network.scale.copy_(1 / flat.std(0).clamp_min(1e-6))
    pool = flat[torch.randperm(len(flat), generator=generator)[:POOL]] * network.scale
    coarse = pool @ (torch.randn(pool.shape[1], COARSE, generator=generator) / COARSE**0.5)
    chosen = [0]
    distance = (coarse - coarse[0]).square().sum(1)
    progress.start("core set", len(network.bank))
    for _ in range(min(len(network.bank), len(pool)) - 1):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (coarse - coarse[chosen[-1]]).square().sum(1))
        progress.advance(1)
    progress.finish()
    # Fewer patches than room: the last is repeated, which changes no distance.
    chosen += [chosen[-1]] * (len(network.bank) - len(chosen))
    network.bank.copy_(pool[chosen])


def batches(rows: Sequence[Row], size: int, count: int = 16) -> Iterator[torch.Tensor]:
    """Normalised pictures, ``count`` at a time."""
    for start in range(0, len(rows), count):
        pixels = [images.resize(images.read_image(row["image"]), size, size) for row in rows[start : start + count]]
        yield torch.from_numpy(np.stack([images.normalise(picture) for picture in pixels]))


def threshold(network: torch.nn.Module, rows: Sequence[Row], size: int, false_alarms: float) -> float:
    """The score that a share of ``false_alarms`` of good parts exceeds.

    Raises:
        ScenariumError: SCN-3322: no good part is left to measure it on.
    """
    if not rows:
        raise ScenariumError("SCN-3322")
    network.eval()
    with torch.inference_mode():
        scores = torch.cat([network(image=batch)[1] for batch in batches(rows, size)]).numpy()
    return bound(scores.astype(np.float64), false_alarms)


def bound(scores: np.ndarray, share: float) -> float:
    """The value that a further good part exceeds with probability ``share``.

    The empirical quantile where there are scores enough to have one; else Student's one-sided prediction bound,
    mean + t s sqrt(1 + 1/n), which takes the scores for normal and is wide where they are few.
    """
    from scipy.stats import t

    count = len(scores)
    if count * share >= 1:
        return float(np.quantile(scores, 1 - share, method="higher"))
    if count == 1:
        return float(scores[0])
    return float(scores.mean() + t.ppf(1 - share, count - 1) * scores.std(ddof=1) * np.sqrt(1 + 1 / count))


def save(network: torch.nn.Module, path: str) -> None:
    """Write the weights where the engines look for them."""
    save_model(network, path)


def reload(network: torch.nn.Module, path: str) -> torch.nn.Module:
    """Read the weights that the shared trainer wrote."""
    load_model(network, path)
    return network
