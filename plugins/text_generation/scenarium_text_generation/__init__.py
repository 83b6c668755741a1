"""Text generation: any causal language model, served with continuous batching, fine-tuned or trained from scratch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scenarium.core import (
    BadInput,
    Baseline,
    Data,
    Disagreement,
    Evaluation,
    Field,
    Figure,
    Metric,
    Row,
    Run,
    Runtime,
    ScenarioConfig,
    Schema,
    Source,
    Traits,
    hookimpl,
)
from scenarium_text_generation.messages import GenerateRequest, GenerateResponse
from scenarium_text_generation.prompts import Processor
from scenarium_text_generation.settings import TextGenerationConfig
from scenarium_text_generation.text import ByteTrigram, TextStream, chinese_share

if TYPE_CHECKING:
    import torch


class Item(NamedTuple):
    """One request ready for the model."""

    processor: Processor
    ids: list[int]
    request: GenerateRequest
    warnings: list[str]


def read_topics(paths: list[Path]) -> list[Row]:
    """The help topics of the Python language that every interpreter carries, one row each."""
    from pydoc_data.topics import topics

    return [{"text": text, "_group": name} for name, text in topics.items()]


TOPICS = Source(
    name="python-language-topics",
    origin="real",
    licence="PSF-2.0",
    read=read_topics,
    doc="the language reference as shown by Python's help(): 79 English texts of the running interpreter",
)


@hookimpl
def config() -> type[ScenarioConfig]:
    return TextGenerationConfig


@hookimpl
def fields() -> Mapping[str, Field]:
    return {"text": Field("text", "a text to learn from; no length limit")}


@hookimpl
def sources() -> Sequence[Source]:
    return [TOPICS]


@hookimpl
def schema() -> Schema:
    return Schema(GenerateRequest, GenerateResponse)


@hookimpl
def sample() -> GenerateRequest:
    return GenerateRequest(prompt="The quick brown fox", max_new_tokens=8, temperature=0.0)


@hookimpl
def fit(config: TextGenerationConfig, rows: Sequence[Row]) -> Mapping[str, Any]:
    from scenarium_text_generation.base import SCRATCH
    from scenarium_text_generation.training import describe

    state = describe(config.model, (row["text"] for row in rows))
    if config.model.base == SCRATCH:
        share = chinese_share("".join(row["text"][:2000] for row in rows[:500]))
        state["languages"] = [lang for lang, there in (("zh", share > 0.05), ("en", share < 0.95)) if there]
    return state


@hookimpl
def processor(state: Mapping[str, Any]) -> Processor:
    return Processor(state)


@hookimpl
def items(config: TextGenerationConfig, processor: Processor, rows: Sequence[Row]) -> Sequence[np.ndarray]:
    """All texts one after another, an end token between them, cut into pieces that overlap by the one token that is predicted first."""
    end = processor.eos[:1]
    stream = [token for row in rows for token in [*processor.ids(row["text"]), *end]]
    step = config.model.context
    return [np.array(stream[at : at + step + 1], dtype=np.int64) for at in range(0, max(1, len(stream) - 1), step)]


@hookimpl
def encode(config: TextGenerationConfig, item: np.ndarray) -> Mapping[str, np.ndarray]:
    ids = np.zeros(config.model.context, dtype=np.int64)
    labels = np.full(config.model.context, -100, dtype=np.int64)
    ids[: len(item) - 1] = item[:-1]
    labels[: len(item) - 1] = item[1:]
    return {"input_ids": ids, "labels": labels}


@hookimpl
def model(config: TextGenerationConfig, state: Mapping[str, Any]) -> torch.nn.Module:
    from scenarium_text_generation.training import trainable

    return trainable(config.model, state)


@hookimpl
def loss(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    from torch.nn import functional

    logits = model(input_ids=batch["input_ids"])
    total = functional.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten(), reduction="sum", ignore_index=-100)
    return total, (batch["labels"] != -100).sum()


@hookimpl
def train(config: TextGenerationConfig, data: Data, run: Run) -> bool:
    from scenarium_text_generation import training

    training.train(config, data, run)
    return True


@hookimpl
def metric() -> Metric:
    return Metric("bits_per_byte", higher_is_better=False)


@hookimpl
def evaluate(config: TextGenerationConfig, runtime: Runtime, rows: Sequence[Row]) -> Evaluation:
    """How surprised the model is by held-out text. No text is generated."""
    from scenarium_text_generation.training import surprise

    left = config.model.eval_tokens
    held_out, answers = [], []
    for row in rows:
        ids = [runtime.processor.eos[0], *runtime.processor.ids(row["text"])][: left + 1]
        if len(ids) < 2:
            continue
        text = runtime.processor.tokenizer.decode(ids[1:])
        bits = surprise(runtime.model.model, ids, min(1024, runtime.processor.limit))
        held_out.append({"text": text})
        answers.append({"bits": bits, "bytes": len(text.encode()), "tokens": len(ids) - 1})
        left -= len(ids) - 1
        if left <= 0:
            break
    return Evaluation(dict(score(held_out, answers)), held_out, answers)


@hookimpl
def score(rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    bits, size, tokens = (sum(answer[key] for answer in answers) for key in ("bits", "bytes", "tokens"))
    return {"bits_per_byte": bits / size, "token_perplexity": 2 ** (bits / tokens), "measured_tokens": float(tokens)}


@hookimpl
def baseline(train: Sequence[Row], test: Sequence[Row]) -> Baseline:
    trigram = ByteTrigram(row["text"] for row in train)
    size = sum(len(row["text"].encode()) for row in test)
    return Baseline("byte trigram of the training text", {"bits_per_byte": sum(trigram.bits(row["text"]) for row in test) / size})


@hookimpl
def report(rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Sequence[Figure]:
    """Which held-out texts surprise the model most: in another language, damaged, or of another kind than what it learned."""
    from scenarium.core import charts

    each = [(row["text"][:200], answer["bits"] / max(answer["bytes"], 1), answer["tokens"]) for row, answer in zip(rows, answers, strict=True)]
    each.sort(key=lambda line: -line[1])
    head = ("text / 文本", "bits per byte / 每字节比特数", "tokens / 词元数")
    return [Figure("Held-out texts, the most surprising first / 留出文本，最意外者在前", charts.table(head, each[:20]))]


@hookimpl
def traits() -> Traits:
    preload = ("transformers", "transformers.models.llama.modeling_llama", "transformers.generation.continuous_batching")
    return Traits(concurrency=16, max_batch_size=16, streams=True, preload=preload, disagreement=Disagreement("tokens", "/text"))


@hookimpl
def load(config: TextGenerationConfig, state: Mapping[str, Any], version: Path, device: str) -> Any:
    from scenarium_text_generation.generator import Generator
    from scenarium_text_generation.training import load as load_module

    module = load_module(state, version, device)
    return Generator(module.model, state["eos"], config.model.cache_blocks, config.model.batch_tokens)


@hookimpl
def preprocess(config: TextGenerationConfig, processor: Processor, request: GenerateRequest) -> Item:
    field = "prompt" if request.prompt is not None else "messages"
    text = request.prompt if request.prompt is not None else processor.render(request.messages or [])
    ids = processor.ids(text)
    if not ids:
        raise BadInput(field, "is empty: there is nothing to continue", "为空：没有可续写的内容")
    # The pages of the cache are shared, so one request may not be larger than all of them.
    room = min(processor.limit, config.model.cache_blocks * 256)
    if len(ids) + request.max_new_tokens > room:
        count, new = len(ids), request.max_new_tokens
        raise BadInput(
            field,
            f"has {count} tokens; with {new} new ones that is more than the {room} the model takes",
            f"有 {count} 个词元，加上 {new} 个新词元超过了模型上限 {room}",
        )
    warnings = []
    if processor.languages == ["en"] and chinese_share(text) > 0.2:
        warnings.append(
            "this model knows almost no Chinese; a Chinese-capable base is Qwen/Qwen2.5-0.5B-Instruct (model.base). "
            "该模型几乎不懂中文；请将 model.base 设为支持中文的模型，例如 Qwen/Qwen2.5-0.5B-Instruct。"
        )
    return Item(processor, ids, request, warnings)


def generate(model: Any, item: Item) -> Iterator[dict[str, Any]]:
    """Text pieces, then the end with its reason and counts."""
    from scenarium_text_generation.sampling import Record, Sampling

    request, processor = item.request, item.processor
    seed = random.getrandbits(62) if request.seed is None else request.seed
    record = None if request.logprobs is None else Record(request.logprobs)
    sampling = Sampling(request.temperature, request.top_k, request.top_p, request.repetition_penalty, seed, record)
    stream = TextStream(processor.tokenizer, request.stop)
    tokens = model.stream(item.ids, request.max_new_tokens, sampling)
    ended = False
    told: list[dict[str, Any]] = []
    """Log probabilities of the tokens since the last piece."""

    def until_end() -> Iterator[int]:
        nonlocal ended
        for number, token in enumerate(tokens, len(item.ids)):
            if token in processor.eos:
                ended = True
                return
            if record:
                told.append(processor.shown(token, record.chosen.pop(number)))
            yield token

    def logprobs() -> dict[str, Any]:
        found = {"logprobs": list(told)} if told else {}
        told.clear()
        return found

    try:
        for piece in stream.feed(until_end()):
            yield {"text": piece, **logprobs()}
        if rest := logprobs():
            yield {"text": "", **rest}
    finally:
        tokens.close()
    usage = {"prompt_tokens": len(item.ids), "completion_tokens": stream.count + ended}
    yield {"finish_reason": "stop" if ended or stream.stopped else "length", "usage": usage, "warnings": item.warnings}


@hookimpl
def predict_batch(model: Any, batch: Sequence[Item]) -> Sequence[Any]:
    """All items join the running batch together; one that fails does not end the others."""

    def whole(item: Item) -> Any:
        try:
            *pieces, end = generate(model, item)
        except Exception as fault:  # an answer of its own for each item
            return fault
        told = None if item.request.logprobs is None else [each for piece in pieces for each in piece.get("logprobs", ())]
        return {"text": "".join(piece["text"] for piece in pieces), "logprobs": told, **end}

    if len(batch) == 1:
        return [whole(batch[0])]
    with ThreadPoolExecutor(len(batch)) as pool:
        return list(pool.map(whole, batch))


@hookimpl
def postprocess(output: Mapping[str, Any]) -> GenerateResponse:
    return GenerateResponse.model_validate(output)


@hookimpl
def stream(config: TextGenerationConfig, processor: Processor, model: Any, request: GenerateRequest) -> Iterator[dict[str, Any]]:
    return generate(model, preprocess(config, processor, request))
