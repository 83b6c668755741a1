"""Industrial inspection: find defects on parts, learned from good parts alone or from labelled defect classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scenarium.core import (
    Baseline,
    Data,
    Disagreement,
    Field,
    Figure,
    Metric,
    Request,
    Row,
    Run,
    ScenarioConfig,
    ScenariumError,
    Schema,
    Signature,
    Source,
    TensorSpec,
    Traits,
    charts,
    hookimpl,
    images,
)
from scenarium_defect_detection import maps
from scenarium_defect_detection.answers import Answer, named, scored
from scenarium_defect_detection.data import TEXTURES, read_textures
from scenarium_defect_detection.measures import classified, histogram, levels_of, pixel_counts
from scenarium_defect_detection.settings import Config, chosen_method
from scenarium_defect_detection.simulate import disturb

if TYPE_CHECKING:
    import torch

State = Mapping[str, Any]


class Ask(Request):
    """One picture of a part."""

    image: bytes
    """The file's bytes: JPEG, PNG, WebP, BMP, TIFF or GIF. Base64 in JSON; raw body and multipart upload work too."""
    heat_map: bool = True
    """Whether to answer the heat map."""


@hookimpl
def config() -> type[ScenarioConfig]:
    return Config


@hookimpl
def fields(config: Config) -> Mapping[str, Field]:
    supervised = config.model.task == "classify"
    return {
        "image": Field("image", "the picture of one part"),
        "label": Field("label", "kind of defect, or the name of good parts", required=supervised),
        "mask": Field("mask", "where the defect is; only measured against", required=False),
    }


@hookimpl
def sources(config: Config) -> Sequence[Source]:
    unseen = config.model.task == "anomaly"
    doc = "crops of brick, grass and gravel photographs with drawn defects; the right third of each photograph is held out"
    return [
        Source(
            "textures",
            "real parts, generated",
            "CC0 photographs in scikit-image (BSD-3-Clause)",
            lambda paths: read_textures(paths, unseen=unseen),
            TEXTURES,
            doc=doc,
        )
    ]


@hookimpl
def schema() -> Schema:
    return Schema(Ask, Answer)


@hookimpl
def sample() -> Ask:
    # A wall of four courses, with one dark scratch.
    wall = 150 + 4 * np.random.default_rng(7).standard_normal((128, 128))
    for top in range(0, 128, 32):
        wall[top : top + 4] -= 40
        for left in range(16 if top % 64 else 0, 128, 48):
            wall[top + 4 : top + 32, left : left + 4] -= 40
    for step in range(70):
        wall[34 + step // 2, 30 + step : 40 + step] = 20
    return Ask(image=images.encode_png(wall.clip(0, 255).astype(np.uint8)))


@hookimpl
def fit(config: Config, rows: Sequence[Row]) -> State:
    method = chosen_method(config)
    state: dict[str, Any] = {"method": method, "size": config.model.size, "good": config.data.good, "threshold": 0.5}
    if method == "classify":
        if any(row.get("label") is None for row in rows):
            raise ScenariumError("SCN-3321")
        backbone = "small" if config.model.pretrained == "none" else config.model.backbone
        return state | {"labels": sorted({row["label"] for row in rows}), "backbone": backbone}
    if not good_rows(config, rows):
        labels = ", ".join(sorted({str(row["label"]) for row in rows}))
        raise ScenariumError("SCN-3320", good=config.data.good, labels=labels)
    if method in ("patchcore", "padim"):
        from scenarium_defect_detection.fitting import shape_of_patches

        channels, places = shape_of_patches(config.model.backbone, config.model.size)
        state |= {"backbone": config.model.backbone, "channels": channels, "places": places}
        state |= {"patches": config.model.patches, "kept": min(config.model.features, channels)}
    return state


def good_rows(config: Config, rows: Sequence[Row]) -> list[Row]:
    """The rows that are good or say nothing."""
    return [row for row in rows if row.get("label") in (None, "", config.data.good)]


def defective(config: Config, row: Row) -> bool:
    """Whether a row is marked as a defect."""
    return row.get("label") not in (None, "", config.data.good)


@hookimpl
def items(config: Config, rows: Sequence[Row]) -> Sequence[Row]:
    return rows if config.model.task == "classify" else good_rows(config, rows)


@hookimpl
def signature(state: State) -> Signature:
    size = state["size"]
    inputs = (TensorSpec("image", "float32", (3, size, size)),)
    if state["method"] == "classify":
        classes = len(state["labels"])
        cells = -(-size // (16 if state["backbone"] == "small" else 32))
        return Signature(inputs, (TensorSpec("logits", "float32", (classes,)), TensorSpec("evidence", "float32", (classes, cells, cells))))
    cells = size // (4 if state["method"] == "simulate" else 8)
    return Signature(inputs, (TensorSpec("map", "float32", (cells, cells)), TensorSpec("score", "float32", ())))


@hookimpl
def model(config: Config, state: State) -> torch.nn.Module:
    from scenarium_defect_detection import fitting

    network = fitting.build(state)
    if config.model.pretrained != "none" and state["method"] != "simulate":
        fitting.start_from(network, config)
    return network


@hookimpl
def load(config: Config, state: State, signature: Signature, version: Path, device: str) -> Any:
    from scenarium.core.engines import open_engine

    def build() -> torch.nn.Module:
        from scenarium_defect_detection import fitting

        # Without pretrained weights: the version's own replace them, and a server must not need the hub.
        return fitting.build(state)

    return open_engine(config.serve.engine, version, signature, device, build=build)


@hookimpl
def encode(config: Config, processor: State, item: Row, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
    size: int = processor["size"]
    pixels = images.resize(images.read_image(item["image"]), size, size)
    if rng is not None and config.train.turn:
        pixels = np.rot90(pixels, int(rng.integers(4)))
        pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
    if config.model.task == "classify":
        labels: list[str] = processor["labels"]
        # A label of the validation rows that no training row has cannot be learned; -100 leaves it out of the loss.
        label = labels.index(item["label"]) if item["label"] in labels else -100
        return {"image": images.normalise(relit(pixels, rng)), "labels": np.array(label, dtype=np.int64)}
    # Validation meets the same defects each time: they depend on the picture alone.
    dice = rng if rng is not None else np.random.default_rng(int(pixels.sum()))
    disturbed, changed = disturb(np.ascontiguousarray(pixels), dice)
    cells = changed.reshape(size // 4, 4, size // 4, 4).mean((1, 3))
    # A scratch one pixel wide fills a quarter of the cells that it crosses.
    return {"image": images.normalise(relit(disturbed, rng)), "target": (cells >= 0.2).astype(np.float32)}


def relit(pixels: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Change brightness and contrast a little, as another lamp would."""
    if rng is None:
        return pixels
    changed = (pixels.astype(np.float32) - 128) * rng.uniform(0.85, 1.15) + 128 + rng.uniform(-15, 15)
    return changed.clip(0, 255).astype(np.uint8)


@hookimpl
def loss(config: Config, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | int] | None:
    if config.model.task == "classify":
        return None
    from torch.nn import functional

    log_odds, _ = model(image=batch["image"])
    total = functional.binary_cross_entropy_with_logits(log_odds.float(), batch["target"], reduction="sum")
    return total, batch["target"].numel()


@hookimpl
def train(config: Config, data: Data, run: Run) -> bool:
    from scenarium.training.trainer import fit as train_shared
    from scenarium_defect_detection import fitting

    method, weights = run.state["method"], str(run.out / "model.safetensors")
    if method in ("classify", "simulate"):
        train_shared(config, data, run)
        if method == "classify":
            return True
        network = fitting.reload(fitting.build(run.state), weights)
    else:
        network = run.scenario.hook.model(config=config, state=run.state)
        fitting.remember(network, good_rows(config, data.train), config.model.size, config.train.seed, run.progress)
        fitting.save(network, weights)
    # Parts that were not trained on, where there are any: those that were score too low.
    unseen = good_rows(config, data.val) or good_rows(config, data.train)
    run.state["threshold"] = fitting.threshold(network, unseen, config.model.size, config.model.false_alarms)
    return True


def to_input(pixels: np.ndarray, size: int) -> np.ndarray:
    """``uint8`` ``[H, W, 3]`` to the network's input. The whole part is seen, stretched to a square: defects sit at edges too."""
    return images.normalise(images.resize(pixels, size, size))


@hookimpl
def preprocess(processor: State, request: Ask) -> Mapping[str, np.ndarray]:
    return {"image": to_input(images.read_image(request.image), processor["size"])}


@hookimpl
def postprocess(processor: State, request: Ask, output: Mapping[str, np.ndarray]) -> Answer:
    size = images.size_of(request.image)
    answer = named if processor["method"] == "classify" else scored
    return answer(processor, output, size, request.heat_map)


@hookimpl
def metric(config: Config) -> Metric:
    return Metric("macro_f1" if config.model.task == "classify" else "image_auroc")


@hookimpl
def request(row: Row) -> Ask:
    return Ask(image=images.encoded(row["image"]))


@hookimpl
def score(config: Config, rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    if config.model.task == "classify":
        return classified([row["label"] for row in rows], [answer["defect"] for answer in answers])
    bad = np.array([defective(config, row) for row in rows])
    scores = np.array([answer["score"] for answer in answers])
    alarms = np.array([answer["is_defect"] for answer in answers])
    found: dict[str, float] = {}
    if (~bad).any():
        found["false_alarm_rate"] = float(alarms[~bad].mean())
    if bad.any():
        found["recall"] = float(alarms[bad].mean())
    if bad.any() and (~bad).any():
        found["image_auroc"] = maps.auroc(scores[bad], scores[~bad])
    counts = np.zeros((2, 256), dtype=np.int64)
    for row, answer, is_bad in zip(rows, answers, bad, strict=True):
        if row.get("mask") is not None or not is_bad:
            counts += pixel_counts(answer["heat_map"], row.get("mask"))
    if counts[0].any() and counts[1].any():
        found["pixel_auroc"] = maps.auroc_of_counts(counts[0], counts[1])
    return found


@hookimpl
def baseline(config: Config, train: Sequence[Row], test: Sequence[Row]) -> Baseline | None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    held_out = np.stack([histogram(row["image"]) for row in test])
    if config.model.task == "classify":
        method = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        method.fit(np.stack([histogram(row["image"]) for row in train]), [row["label"] for row in train])
        return Baseline("grey histogram + logistic regression", classified([row["label"] for row in test], list(method.predict(held_out))))
    bad = np.array([defective(config, row) for row in test])
    if bad.all() or not bad.any():
        return None
    known = np.stack([histogram(row["image"]) for row in good_rows(config, train)])
    distance = np.array([np.abs(known - one).sum(1).min() for one in held_out])
    return Baseline("grey histogram, distance to the nearest good part", {"image_auroc": maps.auroc(distance[bad], distance[~bad])})


@hookimpl
def report(config: Config, rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Sequence[Figure]:
    figures = []
    if config.model.task == "classify":
        true, predicted = [row["label"] for row in rows], [answer["defect"] for answer in answers]
        figures.append(Figure("Confusion matrix / 混淆矩阵", charts.confusion_matrix(true, predicted)))
    else:
        kinds: dict[str, list[bool]] = {}
        for row, answer in zip(rows, answers, strict=True):
            kinds.setdefault(row.get("label") or config.data.good, []).append(answer["is_defect"])
        shares = {kind: float(np.mean(alarms)) for kind, alarms in sorted(kinds.items())}
        figures.append(Figure("Share of parts called defective, by kind / 各类被判为缺陷的比例", charts.bars(shares)))
    # The strongest of each kind in turn, so that no kind fills the page.
    order = sorted(range(len(rows)), key=lambda index: -answers[index]["score"])
    ranks: dict[str, int] = {}
    rank = {index: ranks.setdefault(str(rows[index].get("label")), 0) or 0 for index in order}
    for index in order:
        kind = str(rows[index].get("label"))
        rank[index], ranks[kind] = ranks[kind], ranks[kind] + 1
    shown = sorted(order, key=lambda index: rank[index])[:24]
    level = [levels_of(answers[index]["heat_map"]) for index in shown]
    pictures = [images.resize(images.read_image(rows[index]["image"]), *one.shape) for index, one in zip(shown, level, strict=True)]
    captions = [f"{rows[index].get('label') or '?'} {answers[index]['score']:.2f}" for index in shown]
    figures.append(Figure("Heat maps / 热力图", charts.heat_maps(pictures, [one.astype(np.float32) for one in level], captions)))
    return figures


@hookimpl
def traits(config: Config) -> Traits:
    preload = () if config.model.pretrained == "none" else ("torchvision.models",)
    return Traits(max_batch_size=16, preload=preload, tolerance=1e-3, disagreement=Disagreement("boxes", "/boxes"))
