"""Request, answer and call of each pipeline task. No torch and no transformers here."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from scenarium.core import BadInput, Request, Response, Section

if TYPE_CHECKING:
    from scenarium_transformers_pipeline import PipelineConfig

MASK = "[MASK]"
"""Stands for the model's own mask token in a request of ``fill-mask``."""


class Text(Request):
    """One text, or a pair."""

    text: str = Field(min_length=1)
    """The text."""
    text_pair: str | None = None
    """A second text, for models of pairs (inference, similarity)."""


class OneText(Request):
    """One text."""

    text: str = Field(min_length=1)
    """The text."""


class Embedded(Request):
    """A text that becomes a vector."""

    input: str = Field(min_length=1)
    """The text."""
    vectors: bool = False
    """Tell the vectors of its tokens too."""


class MaskedText(Request):
    """A text with one gap."""

    text: str = Field(min_length=1)
    """The text, with `[MASK]` in the place of the word that is looked for."""


class Choice(Request):
    """A text and the labels to choose from."""

    text: str = Field(min_length=1)
    """The text."""
    labels: list[str] = Field(min_length=1, max_length=100)
    """The labels, in words."""
    multi_label: bool = False
    """Whether each label is judged for itself, so that scores do not add up to 1."""


class Image(Request):
    """One picture."""

    image: bytes
    """PNG, JPEG or another format that Pillow reads."""


class Audio(Request):
    """One recording."""

    audio: bytes
    """WAV, 16 bit PCM, at the model's sampling rate; channels are averaged."""


class Label(Response):
    """One label."""

    label: str
    score: float


class Labels(Response):
    """Labels, the best first."""

    labels: list[Label]


class Entity(Response):
    """One entity of a text."""

    label: str
    score: float
    text: str
    start: int
    """Offset of its first character."""
    end: int
    """Offset behind its last character."""


class Entities(Response):
    """The entities of a text, in order."""

    entities: list[Entity]


class EmbeddedTokens(Section):
    """Tokens of one text."""

    prompt_tokens: int


class Embedding(Response):
    """A text as a vector."""

    embedding: list[float]
    """Of the whole text."""
    usage: EmbeddedTokens
    vectors: list[list[float]] | None = None
    """The last hidden states, one vector a token, where they are asked for."""


class Task(NamedTuple):
    """One task."""

    request: type[BaseModel]
    response: type[BaseModel]
    sample: Callable[[], BaseModel]
    read: Callable[[Any], Any]
    """From a request to what ``answer`` takes; raises ``BadInput``."""
    answer: Callable[[Any, list[Any], PipelineConfig], list[Any]]
    """(pipeline, items, settings) to the fields of each answer."""


def _itself(request: Any) -> Any:
    return request


def _labels(found: Any) -> dict[str, Any]:
    return {"labels": [{"label": each["label"], "score": each["score"]} for each in found]}


def _classify(pipe: Any, items: list[Text], config: PipelineConfig) -> list[Any]:
    asked = [{"text": item.text, "text_pair": item.text_pair} if item.text_pair is not None else {"text": item.text} for item in items]
    return [_labels(found) for found in pipe(asked, batch_size=len(asked), top_k=config.top_k, truncation=True)]


def _tag(pipe: Any, items: list[OneText], config: PipelineConfig) -> list[Any]:
    found = pipe([item.text for item in items], batch_size=len(items), aggregation_strategy=config.aggregation)
    label = "entity" if config.aggregation == "none" else "entity_group"
    return [
        {
            "entities": [
                {"label": each[label], "score": each["score"], "text": item.text[each["start"] : each["end"]], "start": each["start"], "end": each["end"]}
                for each in entities
            ]
        }
        for item, entities in zip(items, found, strict=True)
    ]


def _read_masked(request: MaskedText) -> str:
    if request.text.count(MASK) != 1:
        raise BadInput("text", f"must hold {MASK} once", f"必须恰好包含一个 {MASK}")
    return request.text


def _fill(pipe: Any, items: list[str], config: PipelineConfig) -> list[Any]:
    texts = [text.replace(MASK, pipe.tokenizer.mask_token) for text in items]
    found = pipe(texts, batch_size=len(texts), top_k=config.top_k)
    return [{"labels": [{"label": each["token_str"].strip(), "score": each["score"]} for each in one]} for one in (found if len(texts) > 1 else _nested(found))]


def _nested(found: list[Any]) -> list[Any]:
    """The pipeline leaves the list of one text away."""
    return found if isinstance(found[0], list) else [found]


def _choose(pipe: Any, items: list[Choice], config: PipelineConfig) -> list[Any]:
    answers = []
    for item in items:  # each has labels of its own
        found = pipe(item.text, candidate_labels=item.labels, multi_label=item.multi_label)
        answers.append({"labels": [{"label": label, "score": score} for label, score in zip(found["labels"], found["scores"], strict=True)]})
    return answers


def _embed(pipe: Any, items: list[Embedded], config: PipelineConfig) -> list[Any]:
    from scenarium_transformers_pipeline.embedding import embed

    found = embed(pipe, [item.input for item in items], pipe.pooling)
    return [
        {"embedding": vector.tolist(), "usage": {"prompt_tokens": len(tokens)}, "vectors": tokens.tolist() if item.vectors else None}
        for item, (vector, tokens) in zip(items, found, strict=True)
    ]


def _read_image(request: Image) -> Any:
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(request.image)) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, Pillow.DecompressionBombError) as fault:
        raise BadInput("image", f"is no picture that can be read ({type(fault).__name__})", f"不是可读取的图片（{type(fault).__name__}）") from None


def _see(pipe: Any, items: list[Any], config: PipelineConfig) -> list[Any]:
    return [_labels(found) for found in pipe(items, batch_size=len(items), top_k=config.top_k)]


def _read_audio(request: Audio) -> dict[str, Any]:
    try:
        with wave.open(io.BytesIO(request.audio)) as file:
            if file.getsampwidth() != 2 or not file.getnframes():
                raise BadInput("audio", "must be 16 bit PCM and not empty", "必须是非空的 16 位 PCM")
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels()).mean(1) / 32768
            return {"raw": samples.astype(np.float32), "sampling_rate": file.getframerate()}
    except (wave.Error, EOFError, ValueError) as fault:
        raise BadInput("audio", f"is no WAV file that can be read ({fault})", f"不是可读取的 WAV 文件（{fault}）") from None


def _hear(pipe: Any, items: list[dict[str, Any]], config: PipelineConfig) -> list[Any]:
    rate = pipe.feature_extractor.sampling_rate
    for item in items:
        if item["sampling_rate"] != rate:
            raise BadInput("audio", f"must have {rate} samples a second, not {item['sampling_rate']}", f"的采样率必须是 {rate}，而不是 {item['sampling_rate']}")
    return [_labels(pipe(dict(item), top_k=config.top_k)) for item in items]


def _picture() -> Image:
    from PIL import Image as Pillow

    made = io.BytesIO()
    Pillow.fromarray(np.indices((32, 32, 3)).sum(0).astype(np.uint8) * 3).save(made, "PNG")
    return Image(image=made.getvalue())


def _tone() -> Audio:
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((np.sin(np.arange(8_000) * 0.17) * 8_000).astype("<i2").tobytes())
    return Audio(audio=made.getvalue())


TASKS: dict[str, Task] = {
    "text-classification": Task(Text, Labels, lambda: Text(text="What a wonderful day"), _itself, _classify),
    "token-classification": Task(OneText, Entities, lambda: OneText(text="Ada Lovelace lived in London"), _itself, _tag),
    "fill-mask": Task(MaskedText, Labels, lambda: MaskedText(text=f"The capital of France is {MASK}."), _read_masked, _fill),
    "zero-shot-classification": Task(Choice, Labels, lambda: Choice(text="The match ended 2:1", labels=["sport", "politics"]), _itself, _choose),
    "feature-extraction": Task(Embedded, Embedding, lambda: Embedded(input="What a wonderful day"), _itself, _embed),
    "image-classification": Task(Image, Labels, _picture, _read_image, _see),
    "audio-classification": Task(Audio, Labels, _tone, _read_audio, _hear),
}
