"""The OpenAI API over a real language model: trained from scratch on a few lines of poems, given a chat template, packaged, served."""

from __future__ import annotations

import numpy as np
import openai
import pytest

from scenarium.core.handle import Handle
from scenarium.core.registry import Registry
from scenarium.core.settings import Settings

pytest.importorskip("scenarium_text_generation")
pytestmark = pytest.mark.slow

LINES = ["床前明月光，疑是地上霜。", "举头望明月，低头思故乡。", "春眠不觉晓，处处闻啼鸟。", "夜来风雨声，花落知多少。"]
TEMPLATE = (
    "{{ bos_token + '' }}{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "{{ message.role[0] }}{{ message.content }}{% endfor %}{% if add_generation_prompt %}a{% endif %}"
)
PROMPT = f"<|endoftext|>u{LINES[0]}a"
"""What the template makes of one turn."""
SMALL = ("model.hidden=64", "model.layers=2", "model.heads=2", "model.vocabulary=600", "model.context=64", "train.lr=0.003", "train.epochs=12")


def make(store, *sets):
    settings = Settings.read(environ={"SCENARIUM_STORE": str(store)}, sets=sets, scenario="text_generation")
    return Handle(Registry(settings).scenario("text_generation"))


@pytest.fixture(scope="module")
def server(shared_lab):
    """A gateway with a chat model: what was trained, laid out as the hub's models are, is the base of the version that is served."""
    from transformers import PreTrainedTokenizerFast

    from scenarium_text_generation.training import load

    folder = shared_lab.folder
    orders = sorted({tuple(np.random.default_rng(n).permutation(len(LINES))) for n in range(100)})
    (folder / "诗.txt").write_text("\n\n".join("".join(LINES[n] for n in order) for order in orders), encoding="utf8")
    data = f'data.path="{folder / "诗.txt"}"'
    scratch = make(folder / "scratch", *SMALL, "model.base=scratch", data)
    scratch.train()
    version, base = scratch.store.open("text_generation", 1), folder / "base"
    load(scratch.runtime.state, version.folder, "cpu").model.save_pretrained(base)
    PreTrainedTokenizerFast(tokenizer_object=scratch.runtime.processor.tokenizer, chat_template=TEMPLATE, bos_token="<|endoftext|>").save_pretrained(base)
    make(folder / "store", f'model.base="{base}"', data).train()
    found = shared_lab.start(None)
    found.ready("text_generation", timeout=120)
    return found


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


GREEDY = {"model": "text_generation", "temperature": 0, "max_tokens": 24}


def test_the_chat_template_is_the_models(server, client):
    turns = [{"role": "user", "content": LINES[0]}]
    answer = client.chat.completions.create(messages=turns, **GREEDY)
    ours = {"prompt": PROMPT, "temperature": 0, "max_new_tokens": 24}
    own = server.client.post("/scenarios/text_generation/predict", json=ours).json()
    (choice,) = answer.choices
    assert choice.message.content == own["text"]
    assert choice.message.content
    assert choice.finish_reason == own["finish_reason"]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (own["usage"]["prompt_tokens"], own["usage"]["completion_tokens"])
    bare = server.client.post("/scenarios/text_generation/predict", json={**ours, "prompt": LINES[0]}).json()
    assert bare["usage"]["prompt_tokens"] == answer.usage.prompt_tokens - 3  # the start token is one, and a role one
    chunks = list(client.chat.completions.create(messages=turns, stream=True, stream_options={"include_usage": True}, **GREEDY))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == own["text"]
    assert len(chunks) > 5
    assert chunks[-1].usage == answer.usage


def test_what_the_chat_template_refuses_is_the_clients_error(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": LINES[0]}], **GREEDY)
    assert caught.value.param == "messages"
    assert "no system turns" in caught.value.message


def test_every_delta_is_whole_characters(client):
    # hot and without limits the tokens are mostly single bytes of characters
    settings = {"temperature": 5, "top_p": 1, "seed": 3, "max_tokens": 60, "extra_body": {"top_k": 0}}
    whole = client.completions.create(model="text_generation", prompt="春", **settings).choices[0].text
    pieces = [chunk.choices[0].text for chunk in client.completions.create(model="text_generation", prompt="春", stream=True, **settings)]
    assert "".join(pieces) == whole
    assert len(whole.encode()) > len(whole)


def test_seeds_choices_and_stops(client):
    settings = {"model": "text_generation", "prompt": "春眠", "temperature": 1.5, "seed": 7, "max_tokens": 16}
    three = [choice.text for choice in client.completions.create(n=3, **settings).choices]
    assert len(set(three)) > 1
    assert three[1] == client.completions.create(**{**settings, "seed": 8}).choices[0].text
    whole = client.completions.create(prompt=LINES[0], **GREEDY).choices[0].text
    stop = whole[len(whole) // 2 :][:2]
    stopped = client.completions.create(prompt=LINES[0], stop=[stop], **GREEDY).choices[0]
    assert (stopped.text, stopped.finish_reason) == (whole.split(stop)[0], "stop")


def test_log_probabilities(server, client):
    turns = [{"role": "user", "content": LINES[0]}]
    own = server.client.post("/scenarios/text_generation/predict", json={"prompt": PROMPT, "temperature": 0, "max_new_tokens": 24, "logprobs": 3}).json()
    wanted = [each["logprob"] for each in own["logprobs"]]
    assert len(wanted) > 5
    told = client.chat.completions.create(messages=turns, logprobs=True, top_logprobs=3, **GREEDY).choices[0].logprobs.content
    assert [each.logprob for each in told] == pytest.approx(wanted, abs=1e-4)
    assert all(len(each.top_logprobs) == 3 for each in told)
    assert all(bytes(each.bytes).decode() == each.token for each in told if each.bytes)
    chunks = list(client.chat.completions.create(messages=turns, logprobs=True, stream=True, **GREEDY))
    parts = [each for chunk in chunks if chunk.choices and chunk.choices[0].logprobs for each in chunk.choices[0].logprobs.content]
    assert [each.logprob for each in parts] == pytest.approx(wanted, abs=1e-4)
    assert not any(each.top_logprobs for each in parts)
    choice = client.completions.create(prompt=PROMPT, logprobs=3, **GREEDY).choices[0]
    assert choice.logprobs.token_logprobs == pytest.approx(wanted, abs=1e-4)
    assert choice.logprobs.text_offset[:2] == [0, len(choice.logprobs.tokens[0])]
    for options, param in (({"top_logprobs": 2}, "top_logprobs"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"), ({"logprobs": 2}, "logprobs")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(messages=turns, extra_body=options, **GREEDY)
        assert caught.value.param == param


def test_what_it_does_not_do(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="text_generation", input="x")
    assert "embeddings" in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="text_generation", prompt="x", max_tokens=100_000)
    assert caught.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="text_generation", prompt="春" * 5000)
    assert caught.value.param == "prompt"
