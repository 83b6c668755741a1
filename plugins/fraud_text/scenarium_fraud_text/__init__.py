"""Fraudulent messages and calls, Chinese and English: label, probability, and the words that weighed most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic

from scenarium.core import (
    BadInput,
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
    hookimpl,
)
from scenarium.core.text import tokenize
from scenarium_fraud_text import dialogues, mails
from scenarium_fraud_text.explain import phrases, token_weights
from scenarium_fraud_text.features import KINDS, ids, shares
from scenarium_fraud_text.measures import calibration_error, macro_f1, precision_recall, roc_auc, softmax

if TYPE_CHECKING:
    import torch

    from scenarium.core.pipeline import Run
    from scenarium.core.types import Data
    from scenarium_fraud_text.network import Evidence

READ = 8192
"""Tokens of a text that are read when it is answered: about 40 kB of English, 8,000 Chinese characters."""


class Model(ModelConfig):
    """The size of the network, and which labels mean no fraud."""

    normal: list[str] = ["normal", "ham", "legitimate", "正常", "非诈骗", "0"]
    """Labels that mean "no fraud"; every other label is a kind of fraud."""
    buckets: int = pydantic.Field(1 << 16, ge=1 << 10, le=1 << 24)
    """Rows of the hashed n-gram tables."""
    width: int = pydantic.Field(32, ge=4, le=1024)
    """Width of the deep part."""
    layers: int = pydantic.Field(2, ge=0, le=12)
    """Gated convolutions, each of three tokens."""
    dropout: float = pydantic.Field(0.3, ge=0, lt=1)
    """Share of n-grams and of features dropped while training."""
    balance: float = pydantic.Field(1.0, ge=0, le=1)
    """How much rare labels count in training: 0 as often as they occur, 1 as much as the frequent ones."""
    tokens: int = pydantic.Field(256, ge=8, le=READ)
    """Tokens of a text that one training step sees, from a random place of a longer text."""
    words: int = pydantic.Field(8, ge=0, le=100)
    """Most words and phrases shown with an answer."""


class Train(TrainConfig):
    """Defaults that suit a few thousand messages."""

    epochs: int = pydantic.Field(3, gt=0)
    """Passes over the training rows."""
    lr: float = pydantic.Field(2e-3, gt=0)
    """Peak learning rate."""


class Config(ScenarioConfig):
    """Settings of fraud_text."""

    model: Model = Model()
    train: Train = Train()


class Message(Request):
    """One message, mail or transcript of a call."""

    text: str
    """Chinese, English or both; the turns of a call one a line."""


class Word(Response):
    """A word or phrase that spoke for the label."""

    text: str
    """As it stands in the message."""
    start: int
    """Offset of its first character (Unicode code points)."""
    end: int
    """Offset after its last character."""
    weight: float
    """What it added to the log-odds of the label, in nats."""


class Verdict(Response):
    """What the message is, how sure that is, and why."""

    label: str
    """The most probable label."""
    probability: float
    """Its probability, calibrated on the validation rows."""
    fraud_probability: float | None
    """Sum over all labels that are a kind of fraud; null where no label of the data means "no fraud"."""
    probabilities: dict[str, float]
    """Probability of every label."""
    words: list[Word]
    """The words and phrases that weighed most for the label, the heaviest first."""
    truncated: bool
    """Whether the text was longer than what is read (8,192 tokens)."""


@hookimpl
def config() -> type[ScenarioConfig]:
    return Config


@hookimpl
def fields() -> Mapping[str, Field]:
    return {
        "text": Field("text", "message, mail, or transcript of a call"),
        "label": Field("label", "fraud or normal, or the kind of fraud"),
    }


@hookimpl
def sources() -> Sequence[Source]:
    return [mails.source(), dialogues.source()]


@hookimpl
def schema() -> Schema:
    return Schema(Message, Verdict)


@hookimpl
def sample() -> Message:
    return Message(text="恭喜您中奖了，请点击链接领取")


@hookimpl
def fit(config: Config, rows: Sequence[Row]) -> Mapping[str, Any]:
    counts = Counter(row["label"] for row in rows)
    labels = sorted(counts)
    importance = [(len(rows) / len(labels) / counts[label]) ** config.model.balance for label in labels]
    return {"labels": labels, "importance": importance}


@hookimpl
def items(config: Config, rows: Sequence[Row]) -> Sequence[Any]:
    return [{"ids": ids(tokenize(row["text"], READ), config.model.buckets), "label": row["label"]} for row in rows]


@hookimpl
def encode(config: Config, processor: Mapping[str, Any], item: Any, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
    start = int(rng.integers(max(len(item["ids"]) - config.model.tokens, 0) + 1)) if rng else 0
    labels = processor["labels"]
    # A label that the training rows never had cannot be learned; -100 leaves the row out of the validation loss.
    target = labels.index(item["label"]) if item["label"] in labels else -100
    found = item["ids"][start : start + config.model.tokens]
    importance = np.float32(processor["importance"][target] if target >= 0 else 0)
    return {"ids": found, "shares": shares(found), "labels": np.int64(target), "importance": importance}


@hookimpl
def signature(state: Mapping[str, Any]) -> Signature:
    labels = len(state["labels"])
    inputs = (TensorSpec("ids", "int32", (-1, KINDS)), TensorSpec("shares", "float32", (-1, KINDS)))
    return Signature(inputs, (TensorSpec("logits", "float32", (labels,)), TensorSpec("evidence", "float32", (-1, labels))))


@hookimpl
def model(config: Config, state: Mapping[str, Any]) -> Evidence:
    from scenarium_fraud_text.network import Evidence

    size = config.model
    return Evidence(len(state["labels"]), size.buckets, size.width, size.layers, size.dropout)


@hookimpl
def loss(signature: Signature, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy in which rare labels count more (``model.balance``)."""
    from torch.nn import functional

    logits, _ = model(**{spec.name: batch[spec.name] for spec in signature.inputs})
    each = functional.cross_entropy(logits.float(), batch["labels"], reduction="none", ignore_index=-100)
    return (each * batch["importance"]).sum(), batch["importance"].sum()


@hookimpl(wrapper=True)
def train(config: Config, data: Data, run: Run) -> Generator[None, bool, bool]:
    """After the shared trainer, which trains the deep part: the wide part, and the scale of their sum."""
    done = yield
    if done:
        from safetensors.torch import load_model, save_model

        from scenarium.core.engines.torch_engine import WEIGHTS
        from scenarium_fraud_text import wide

        labels, weights, module = run.state["labels"], run.out / WEIGHTS, model(config, run.state).eval()
        load_model(module, weights)
        known = items(config, [row for row in data.val if row["label"] in labels])
        scale = wide.join(module, items(config, data.train), known, labels, run.state["importance"], config.train.seed)
        run.progress.note(f"scale of the logits: {scale:.2f}")
        save_model(module, str(weights))
    return done


@hookimpl
def metric() -> Metric:
    # A floor of its own: the baseline is as good within what a seed changes, and a user's file must not be kept from serving by a row or two.
    return Metric("macro_f1", floor=0.7)


@hookimpl
def score(config: Config, rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    true, predicted = np.array([row["label"] for row in rows]), np.array([answer["label"] for answer in answers])
    figures = {"macro_f1": macro_f1(true, predicted), "accuracy": float(np.mean(true == predicted))}
    figures["calibration_error"] = calibration_error(np.array([answer["probability"] for answer in answers]), true == predicted)
    scores = [answer["fraud_probability"] for answer in answers]
    if None not in scores:
        fraud = ~np.isin(true, config.model.normal)
        figures["fraud_precision"], figures["fraud_recall"] = precision_recall(fraud, ~np.isin(predicted, config.model.normal))
        area = roc_auc(fraud, np.array(scores))
        figures |= {} if area is None else {"roc_auc": area}
    return figures


@hookimpl
def baseline(train: Sequence[Row], test: Sequence[Row]) -> Baseline:
    from scenarium_fraud_text import plain

    predicted, true = plain.answers(train, test), np.array([row["label"] for row in test])
    return Baseline("TF-IDF (characters 1-3) + linear SVM", {"macro_f1": macro_f1(true, predicted), "accuracy": float(np.mean(true == predicted))})


@hookimpl
def report(config: Config, rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Sequence[Figure]:
    from scenarium.core import charts

    true = [row["label"] for row in rows]
    figures = [Figure("Confusion matrix / 混淆矩阵", charts.confusion_matrix(true, [answer["label"] for answer in answers]))]
    scores = [answer["fraud_probability"] for answer in answers]
    if None not in scores:
        curve = charts.precision_recall_curve([label not in config.model.normal for label in true], scores)
        figures.append(Figure("Precision and recall of fraud / 诈骗的精确率与召回率", curve))
    return figures


@hookimpl
def traits() -> Traits:
    return Traits(max_batch_size=32, disagreement=Disagreement("label", "/label"))


@hookimpl
def preprocess(config: Config, request: Message) -> Mapping[str, np.ndarray]:
    tokens = tokenize(request.text, READ)
    if not tokens.words:
        raise BadInput("text", "holds nothing but white space", "只有空白字符")
    found = ids(tokens, config.model.buckets)
    return {"ids": found, "shares": shares(found)}


@hookimpl(wrapper=True)
def predict_batch(batch: Sequence[Mapping[str, np.ndarray]]) -> Generator[None, Sequence[Any], Sequence[Any]]:
    """Each item's evidence without the padding of its batch."""
    outputs = yield
    return [{**output, "evidence": output["evidence"][: len(item["ids"])]} for output, item in zip(outputs, batch, strict=True)]


@hookimpl
def postprocess(config: Config, processor: Mapping[str, Any], request: Message, output: Mapping[str, np.ndarray]) -> Verdict:
    labels, probabilities = processor["labels"], softmax(output["logits"])
    best = int(probabilities.argmax())
    tokens = tokenize(request.text, READ)
    weights = token_weights(output["evidence"], probabilities, best)
    text = request.text
    words = [Word(text=text[p.start : p.end], start=p.start, end=p.end, weight=p.weight) for p in phrases(tokens, weights, config.model.words)]
    fraud = [float(p) for p, label in zip(probabilities, labels, strict=True) if label not in config.model.normal]
    return Verdict(
        label=labels[best],
        probability=float(probabilities[best]),
        fraud_probability=min(sum(fraud), 1.0) if len(fraud) < len(labels) else None,
        probabilities={label: float(p) for label, p in zip(labels, probabilities, strict=True)},
        words=words,
        truncated=bool(text[tokens.spans[-1, 1] :].strip()),
    )
