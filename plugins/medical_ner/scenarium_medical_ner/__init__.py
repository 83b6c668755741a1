"""Entities with character offsets in medical records, Chinese and English. The labels are those of the training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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
    hookimpl,
)
from scenarium.core.formats.entities import to_tags
from scenarium.core.text import tokenize
from scenarium.core.types import SplitName
from scenarium_medical_ner import records
from scenarium_medical_ner.decoding import run_windows, spans, tag_names, windows
from scenarium_medical_ner.features import KINDS, ids
from scenarium_medical_ner.gazetteer import Gazetteer
from scenarium_medical_ner.measures import counts, entity_scores, precision_recall_f1

if TYPE_CHECKING:
    import torch

OVERLAP = 64
"""Tokens that neighbouring windows share: more than twice what a token's logits can see."""
WINDOWS = 32
"""Windows of one forward."""


class Model(ModelConfig):
    """The size of the tagger."""

    buckets: int = pydantic.Field(1 << 16, ge=1 << 10, le=1 << 24)
    """Rows of the hashed feature table."""
    width: int = pydantic.Field(96, ge=8, le=1024)
    """Width of the network."""
    dropout: float = pydantic.Field(0.3, ge=0, lt=1)
    """Share of features dropped while training."""
    window: int = pydantic.Field(256, gt=2 * OVERLAP, le=4096)
    """Tokens that are read at once; a longer text is read in overlapping windows."""


class Train(TrainConfig):
    """Defaults that suit a few thousand sentences."""

    epochs: int = pydantic.Field(8, gt=0)
    """Passes over the training rows."""
    batch_size: int = pydantic.Field(16, gt=0)
    """Windows of a micro-batch."""
    lr: float = pydantic.Field(2e-3, gt=0)
    """Peak learning rate."""


class Config(ScenarioConfig):
    """Settings of medical_ner."""

    model: Model = Model()
    train: Train = Train()


class Record(Request):
    """One medical text."""

    text: str
    """Chinese, English or both, of any length."""


class Entity(Response):
    """One entity: ``text[start:end]`` of the request."""

    text: str
    """As it stands in the record."""
    start: int
    """Offset of its first character (Unicode code points)."""
    end: int
    """Offset after its last character."""
    label: str
    """Its class."""
    score: float
    """Mean probability of its tags, 0 to 1."""


class Entities(Response):
    """The entities of one text, in order; they do not overlap."""

    entities: list[Entity]
    """All that were found."""


class Processor(NamedTuple):
    """What reading and answering need."""

    tags: list[str]
    gazetteer: Gazetteer


@hookimpl
def config() -> type[ScenarioConfig]:
    return Config


@hookimpl
def fields() -> Mapping[str, Field]:
    return {
        "text": Field("text", "a sentence or a record"),
        "entities": Field("entities", "its entities: start, end, label; or the tags of a CoNLL or BIO file"),
    }


@hookimpl
def sources() -> Sequence[Source]:
    return records.sources()


@hookimpl
def schema() -> Schema:
    return Schema(Record, Entities)


@hookimpl
def sample() -> Record:
    return Record(text="患者因反复胸痛3天入院，既往有高血压病史，口服阿司匹林。ECG showed atrial fibrillation.")


@hookimpl
def fit(rows: Sequence[Row]) -> Mapping[str, Any]:
    return {"tags": tag_names(sorted({entity["label"] for row in rows for entity in row["entities"]})), "terms": Gazetteer.collect(rows)}


@hookimpl
def processor(state: Mapping[str, Any]) -> Processor:
    return Processor(state["tags"], Gazetteer(state["terms"]))


@hookimpl
def items(config: Config, processor: Processor, rows: Sequence[Row], split: SplitName) -> Sequence[Any]:
    """Windows of the rows. A label that the training rows never had is no entity for the model."""
    number = {tag: index for index, tag in enumerate(processor.tags)}
    found = []
    for row in rows:
        tokens = tokenize(row["text"])
        if tokens.words:
            marks = processor.gazetteer.marks(tokens.words, least=2 if split == "train" else 1)
            features = ids(tokens, marks, config.model.buckets)
            tags = np.array([number.get(tag, 0) for tag in to_tags(row["entities"], [(int(a), int(b)) for a, b in tokens.spans])], np.int64)
            found += [{"ids": features[a:b], "labels": tags[a:b]} for a, b in windows(len(tags), config.model.window, OVERLAP)]
    return found


@hookimpl
def encode(item: Any) -> Mapping[str, np.ndarray]:
    encoded: Mapping[str, np.ndarray] = item
    return encoded


@hookimpl
def signature(state: Mapping[str, Any]) -> Signature:
    return Signature((TensorSpec("ids", "int32", (-1, KINDS)),), (TensorSpec("logits", "float32", (-1, len(state["tags"]))),))


@hookimpl
def model(config: Config, state: Mapping[str, Any]) -> torch.nn.Module:
    from scenarium_medical_ner.network import Tagger

    return Tagger(len(state["tags"]), config.model.buckets, config.model.width, config.model.dropout)


@hookimpl
def metric() -> Metric:
    return Metric("f1")


@hookimpl
def score(rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    return entity_scores(rows, answers)


@hookimpl
def baseline(train: Sequence[Row], test: Sequence[Row]) -> Baseline:
    gazetteer = Gazetteer(Gazetteer.collect(train))
    return Baseline("gazetteer (longest match of training entities)", entity_scores(test, [{"entities": gazetteer.entities(row["text"])} for row in test]))


@hookimpl
def report(rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Sequence[Figure]:
    from scenarium.core import charts

    lines = []
    for label, (right, answered, true) in sorted(counts(rows, answers).items(), key=lambda entry: -entry[1][2]):
        precision, recall, f1 = precision_recall_f1(right, answered, true)
        lines.append((label, f"{precision:.3f}", f"{recall:.3f}", f"{f1:.3f}", true, answered))
    head = ("label / 类别", "precision / 精确率", "recall / 召回率", "F1", "true / 实际", "answered / 识别")
    pairs = [(row["text"], row["entities"], answer["entities"]) for row, answer in zip(rows, answers, strict=True)]
    # What went wrong teaches more than what went right.
    pairs.sort(key=lambda pair: sorted(map(str, pair[1])) == sorted(map(str, pair[2])))
    return [Figure("Entities by label / 各类实体", charts.table(head, lines)), Figure("Examples / 示例", charts.entity_table(pairs))]


@hookimpl
def traits() -> Traits:
    return Traits(max_batch_size=32, disagreement=Disagreement("spans", "/entities"))


@hookimpl
def preprocess(config: Config, processor: Processor, request: Record) -> Mapping[str, np.ndarray]:
    tokens = tokenize(request.text)
    return {"ids": ids(tokens, processor.gazetteer.marks(tokens.words), config.model.buckets)}


@hookimpl
def predict_batch(config: Config, model: Any, batch: Sequence[Mapping[str, np.ndarray]]) -> Sequence[np.ndarray]:
    texts = [item["ids"] for item in batch]
    return run_windows(texts, config.model.window, OVERLAP, WINDOWS, lambda features: np.asarray(model({"ids": features})["logits"]))


@hookimpl
def postprocess(processor: Processor, request: Record, output: np.ndarray) -> Entities:
    text, tokens = request.text, tokenize(request.text)
    if not tokens.words:
        return Entities(entities=[])
    found = []
    for span in spans(output, processor.tags):
        start, end = int(tokens.spans[span.first, 0]), int(tokens.spans[span.after - 1, 1])
        found.append(Entity(text=text[start:end], start=start, end=end, label=span.label, score=span.score))
    return Entities(entities=found)
