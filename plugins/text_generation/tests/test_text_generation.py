"""text_generation: the conformance kit, and what is special: one running batch, seeds, stops, cancellation, Chinese, real SmolLM2."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scenarium_text_generation as plugin
from scenarium.core import BadInput, ScenariumError
from scenarium.core.config import Settings
from scenarium.core.handle import Handle
from scenarium.core.kit.pytest_plugin import ScenarioConformance
from scenarium.core.registry import Registry
from scenarium_text_generation.messages import Message
from scenarium_text_generation.prompts import Processor
from scenarium_text_generation.settings import GenerationModel, TextGenerationConfig
from scenarium_text_generation.text import ByteTrigram, TextStream

LINES = [
    "床前明月光，疑是地上霜。",
    "举头望明月，低头思故乡。",
    "春眠不觉晓，处处闻啼鸟。",
    "夜来风雨声，花落知多少。",
    "白日依山尽，黄河入海流。",
    "欲穷千里目，更上一层楼。",
]


class TestTextGeneration(ScenarioConformance):
    name = "text_generation"


def make(folder: Path, *sets: str) -> Handle:
    settings = Settings.read(environ={"SCENARIUM_STORE": str(folder / "store")}, sets=sets, scenario="text_generation")
    return Handle(Registry(settings).scenario("text_generation"))


SCRATCH = ("model.base=scratch", "model.hidden=64", "model.layers=2", "model.heads=2", "model.vocabulary=600", "model.context=64", "train.lr=0.003")


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Handle]:
    """A tiny model trained from scratch on the user's own Chinese text: six lines of poems in many orders."""
    folder = tmp_path_factory.mktemp("generation")
    orders = sorted({tuple(np.random.default_rng(n).permutation(len(LINES))) for n in range(150)})
    (folder / "诗.txt").write_text("\n\n".join("".join(LINES[n] for n in order) for order in orders), encoding="utf8")
    handle = make(folder, *SCRATCH, f'data.path="{folder / "诗.txt"}"', "train.epochs=30")
    handle.train()
    yield handle
    handle.runtime.model.close()


def ask(handle: Handle, **request: Any) -> dict[str, Any]:
    return handle.predict({"max_new_tokens": 24, **request})


def test_it_learned_the_text(chinese: Handle) -> None:
    manifest = chinese.store.open("text_generation", 1).manifest
    assert manifest.metrics["bits_per_byte"] < 1
    answer = ask(chinese, prompt=LINES[0], temperature=0)
    first, *_ = answer["text"].split("。")
    assert f"{first}。" in LINES[1:]
    assert answer["warnings"] == []


def test_report_shows_held_out_texts(chinese: Handle) -> None:
    text = (chinese.store.open("text_generation", 1).folder / "report.html").read_text(encoding="utf8")
    table = text.partition("留出文本，最意外者在前")[2].partition("</table>")[0]
    assert "床前明月光" in table
    surprises = [float(cell) for cell in re.findall(r"<td class=number>([\d.]+)</td><td", table)]
    assert len(surprises) > 1
    assert surprises == sorted(surprises, reverse=True)


def test_a_seed_gives_the_same_text_whoever_shares_the_batch(chinese: Handle) -> None:
    alone = ask(chinese, prompt="春眠", temperature=1.5, seed=7)["text"]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda n: ask(chinese, prompt="春眠", temperature=1.5, seed=7 if n % 2 else n)["text"], range(8)))
    assert together[1::2] == [alone] * 4
    assert len(set(together[::2])) > 1


def test_many_requests_share_each_step_of_one_batch(chinese: Handle) -> None:
    ask(chinese, prompt="春眠", max_new_tokens=1)
    steps: list[int] = []
    counted = chinese.runtime.model.model.register_forward_pre_hook(lambda module, arguments: steps.append(1))
    try:
        with ThreadPoolExecutor(8) as pool:
            # temperature 5 hardly ever draws an end token
            request = {"prompt": "春眠", "temperature": 5, "top_k": 0, "top_p": 1, "max_new_tokens": 48}
            tokens = sum(answer["usage"]["completion_tokens"] for answer in pool.map(lambda n: ask(chinese, **request, seed=n), range(8)))
    finally:
        counted.remove()
    assert tokens > 200
    assert 0 < len(steps) < tokens / 2, "one request after another would take a step for each token"


def test_temperature_zero_is_the_models_own_choice(chinese: Handle) -> None:
    import torch

    processor, model = chinese.runtime.processor, chinese.runtime.model.model
    prompt = processor.ids("举头望")
    with torch.inference_mode():
        ids = list(prompt)
        for _ in range(10):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert ask(chinese, prompt="举头望", temperature=0, max_new_tokens=10, repetition_penalty=1)["text"] == processor.tokenizer.decode(ids[len(prompt) :])


def test_stop_texts_end_the_answer_and_are_left_out(chinese: Handle) -> None:
    whole = ask(chinese, prompt=LINES[0], temperature=0)["text"]
    answer = ask(chinese, prompt=LINES[0], temperature=0, stop=["，"])
    assert answer["text"] == whole.split("，")[0]
    assert answer["finish_reason"] == "stop"


def test_the_stream_is_the_answer_in_pieces(chinese: Handle) -> None:
    request = {"prompt": "春眠不觉", "temperature": 0, "max_new_tokens": 20}
    *pieces, end = chinese.stream(request)
    whole = chinese.predict(request)
    assert len(pieces) > 3
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    assert end == {key: whole[key] for key in ("finish_reason", "usage", "warnings")}


def test_closing_the_stream_ends_the_generation(chinese: Handle) -> None:
    # temperature 5 hardly ever draws an end token, so the request would run for all its 400 tokens
    stream = chinese.stream({"prompt": "春", "max_new_tokens": 400, "temperature": 5, "top_k": 0, "top_p": 1})
    next(iter(stream))
    assert isinstance(stream, Iterator)
    stream.close()  # type: ignore[attr-defined]  # the plugin's stream is a generator
    processor = chinese.runtime.model._manager.batch_processor
    deadline = time.monotonic() + 5
    while processor.scheduler.active_requests and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not processor.scheduler.active_requests


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "春" * 5000}, "prompt"),
        ({"messages": [{"role": "user", "content": "你好"}]}, "messages"),
    ],
)
def test_bad_prompts_name_the_field(chinese: Handle, request_: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInput) as caught:
        chinese.predict(request_)
    assert (caught.value.field, caught.value.status) == (field, 422)


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{{ bos_token }}{{ messages[0].role }}: {{ messages[0].content }}", "<|endoftext|>user: 你好"),
        ("{{ bos_token + eos_token }}{{ messages | length }}", "<|endoftext|><|endoftext|>1"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ nothing + 'x' }}", "'nothing' is undefined"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
        ("{% if %}", "expression"),
    ],
)
def test_chat_templates(chinese: Handle, template: str, found: str) -> None:
    turns = [Message(role="user", content="你好")]
    state = {**chinese.runtime.state, "chat_template": template}
    assert state.pop("special_tokens") == {"eos_token": "<|endoftext|>"}
    processor = Processor({**state, "special_tokens": dict.fromkeys(("bos_token", "eos_token"), "<|endoftext|>")})
    if "bos_token" in template:
        assert processor.render(turns) == found
        assert processor.ids(found)[0] == 0
        if "+" in template:
            with pytest.raises(BadInput, match="bos_token"):
                Processor(state).render(turns)  # an older version, which has no special tokens
        return
    with pytest.raises(BadInput, match=found) as caught:
        processor.render(turns)
    assert (caught.value.field, caught.value.status) == ("messages", 422)


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_finetuning_gives_plain_weights_that_know_the_own_text(chinese: Handle, tmp_path: Path, finetune: str) -> None:
    base = tmp_path / "base"
    version = chinese.store.open("text_generation", 1)
    _as_hugging_face(chinese, version.folder, base)
    songs = ["山有木兮木有枝，", "心悦君兮君不知。", "青青子衿，", "悠悠我心。", "纵我不往，", "子宁不嗣音。"]
    orders = sorted({tuple(np.random.default_rng(n).permutation(len(songs))) for n in range(120)})
    (tmp_path / "own.txt").write_text("\n\n".join("".join(songs[n] for n in order) for order in orders), encoding="utf8")
    own = (f'model.base="{base}"', f'data.path="{tmp_path / "own.txt"}"', "model.context=64", "train.epochs=4")
    tuned = make(tmp_path, *own, f"model.finetune={finetune}", "train.lr=0.01" if finetune == "lora" else "train.lr=0.003")
    manifest = tuned.train().version.manifest
    plain = make(tmp_path / "plain", f'model.base="{base}"', f'data.path="{tmp_path / "own.txt"}"').train().version.manifest
    assert manifest.metrics["bits_per_byte"] < 0.7 * plain.metrics["bits_per_byte"]
    assert _weights(tuned) == _weights(chinese)


def _as_hugging_face(handle: Handle, folder: Path, target: Path) -> None:
    """Save a trained version the way the hub's models are laid out."""
    from transformers import PreTrainedTokenizerFast

    from scenarium_text_generation.training import load

    load(handle.runtime.state, folder, "cpu").model.save_pretrained(target)
    PreTrainedTokenizerFast(tokenizer_object=handle.runtime.processor.tokenizer).save_pretrained(target)


def _weights(handle: Handle) -> list[str]:
    from safetensors import safe_open

    with safe_open(handle.store.open("text_generation", handle.ref).folder / "model.safetensors", "np") as file:
        return list(file.keys())


def test_items_cover_every_token_once() -> None:
    class Words:
        eos = (0,)

        def ids(self, text: str) -> list[int]:
            return [int(word) for word in text.split()]

    config = TextGenerationConfig(model=GenerationModel(context=16))
    rows = [{"text": " ".join(map(str, range(1, 40)))}, {"text": " ".join(map(str, range(50, 60)))}]
    encoded = [plugin.encode(config, item) for item in plugin.items(config, Words(), rows)]  # type: ignore[arg-type]  # only ids and eos are used
    labels = np.concatenate([e["labels"][e["labels"] != -100] for e in encoded])
    assert labels.tolist() == [*range(2, 40), 0, *range(50, 60), 0]


@pytest.mark.parametrize("stop", ["END", "霜", "\n\n"])
def test_a_stop_split_over_tokens_is_found(stop: str) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    stream = TextStream(tokenizer, [stop])
    assert "".join(stream.feed(tokenizer.encode(f"月光E{stop}不应出现").ids)) == "月光E"
    assert stream.stopped


def test_the_baseline_is_a_distribution() -> None:
    model = ByteTrigram(["hello world", "hello there"])
    assert sum(model.probability(b"he", byte) for byte in range(256)) == pytest.approx(1)
    assert sum(model.probability(b"q!", byte) for byte in range(256)) == pytest.approx(1)
    assert model.bits("hello") < model.bits("zqzqz")


def test_an_unknown_base_says_what_was_tried(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScenariumError, match="SCN-0002") as caught:
        make(tmp_path, f'model.base="{tmp_path / "empty"}"').train()
    assert "config.json" in str(caught.value)


@pytest.mark.slow
def test_smollm2_from_its_package_writes_english_and_warns_of_chinese(tmp_path: Path) -> None:
    handle = make(tmp_path, "model.eval_tokens=512")
    manifest = handle.train().version.manifest
    assert manifest.baseline is not None
    assert manifest.metrics["bits_per_byte"] < manifest.baseline.metrics["bits_per_byte"]
    paris = handle.predict({"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0, "max_new_tokens": 24})
    assert "Paris" in paris["text"]
    warned = handle.predict({"prompt": "中国的首都是", "max_new_tokens": 4})
    assert "Qwen" in warned["warnings"][0]
    handle.runtime.model.close()


@pytest.mark.parametrize(("temperature", "penalty"), [(0.0, 1.0), (2.0, 1.3)])
def test_log_probabilities_are_those_of_the_model_itself(chinese: Handle, temperature: float, penalty: float) -> None:
    import torch

    from scenarium_text_generation.sampling import Record, Sampling

    runtime = chinese.runtime
    prompt = runtime.processor.ids("春眠不觉晓")
    record = Record(5)
    made = list(runtime.model.stream(prompt, 12, Sampling(temperature, 0, 1.0, penalty, 3, record)))
    with torch.inference_mode():
        direct = runtime.model.model(torch.tensor([[*prompt, *made]])).logits[0].log_softmax(-1)
    for number, token in enumerate(made):
        chosen, row = record.chosen[len(prompt) + number], direct[len(prompt) + number - 1]
        assert chosen.logprob == pytest.approx(float(row[token]), abs=1e-4)
        best = row.topk(5)
        assert [logprob for _, logprob in chosen.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert {token for token, _ in chosen.top} == set(best.indices.tolist())
    assert set(record.chosen) == set(range(len(prompt), len(prompt) + len(made)))


def test_log_probabilities_of_an_answer(chinese: Handle) -> None:
    settings: dict[str, Any] = {"prompt": "春眠不觉晓，", "temperature": 0, "repetition_penalty": 1}
    plain, told = ask(chinese, **settings), ask(chinese, **settings, logprobs=2)
    assert plain["logprobs"] is None
    assert told["text"] == plain["text"]
    assert len(told["logprobs"]) == told["usage"]["completion_tokens"] - (told["finish_reason"] == "stop")  # the end token is not told
    assert all(each["token"] == each["top"][0]["token"] and len(each["top"]) == 2 for each in told["logprobs"])
    parts = list(chinese.runtime.stream(chinese.runtime.schema.request(max_new_tokens=24, **settings, logprobs=2)))
    assert [each for part in parts for each in part.get("logprobs", ())] == told["logprobs"]
    with pytest.raises(ScenariumError):
        ask(chinese, **settings, logprobs=21)
