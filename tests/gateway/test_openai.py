"""The OpenAI API: the unmodified client against real gateways; what no good client would send; who may call; the real text_generation."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest

from scenarium.gateway.keys import KeyFile


@pytest.fixture(scope="module")
def server(shared_lab):
    shared_lab.publish("talks")
    shared_lab.publish("unit")
    found = shared_lab.start({"talks": "talks", "unit": "unit"}, "gateway.access_log=1")
    found.ready("talks", "unit")
    return found


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def user(text):
    return [{"role": "user", "content": text}]


# ── models ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_models_are_the_scenarios_whose_schemas_fit(client):
    assert [(model.id, model.object, model.owned_by) for model in client.models.list()] == [("talks", "model", "scenarium-talks")]
    assert client.models.retrieve("talks").created > 1_700_000_000


@pytest.mark.parametrize("name", ["unit", "nothing"])
def test_an_unknown_model_is_404(client, name):
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve(name)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=name, messages=user("x"))


# ── whole answers ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_chat(client):
    turns = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]}]
    answer = client.chat.completions.create(model="talks", messages=turns)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "system:be brief|user:你好", "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens == 46
    again = client.chat.completions.create(model="talks", messages=[*turns, answer.choices[0].message.model_dump(), *user("!")])
    assert again.choices[0].message.content.endswith("|assistant:system:be brief|user:你好|user:!")


def test_choices_have_seeds_of_their_own_and_share_the_prompt(client):
    answer = client.chat.completions.create(model="talks", messages=user("a"), n=3, seed=5)
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(0, "user:a#5"), (1, "user:a#6"), (2, "user:a#7")]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (8, 24)


def test_the_request_id_is_the_clients(client):
    raw = client.chat.completions.with_raw_response.create(model="talks", messages=user("a"), extra_headers={"x-request-id": "mine-1"})
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.headers["x-scenarium-version"] == "1"
    assert raw.parse().id == "chatcmpl-mine-1"


def test_completions_of_several_prompts(client):
    answer = client.completions.create(model="talks", prompt=["ab", "xyz"], n=2, max_tokens=2)
    assert answer.object == "text_completion"
    assert [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices] == [
        (0, "ab", "stop"),
        (1, "ab", "stop"),
        (2, "xy", "length"),
        (3, "xy", "length"),
    ]
    assert answer.usage.prompt_tokens == 5
    assert client.completions.create(model="talks", prompt="left|right", stop="|").choices[0].text == "left"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_either_name_of_the_limit(client, name):
    assert client.chat.completions.create(model="talks", messages=user("abc"), **{name: 6}).choices[0].message.content == "user:a"


def test_the_scenarios_own_fields_may_be_used(client):
    assert client.completions.create(model="talks", prompt="a", extra_body={"top_k": 3}).choices[0].text == "a"


def test_embeddings_as_base64_and_as_numbers(client):
    answer = client.embeddings.create(model="talks", input=["abcd", "你好"])  # the client asks for base64
    assert [(each.index, each.embedding) for each in answer.data] == [(0, [2.0, 0.25]), (1, [1.0, 0.25])]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (6, 6)
    assert client.embeddings.create(model="talks", input="abcd", encoding_format="float").data[0].embedding == [2.0, 0.25]


# ── streams ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stream_of_many_bytes_a_character(client):
    chunks = list(client.chat.completions.create(model="talks", messages=user("春眠🌸"), stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "user:春眠🌸"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "stop"]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_with_usage_and_two_choices(client):
    *chunks, last = client.completions.create(model="talks", prompt="ab", n=2, seed=1, stream=True, stream_options={"include_usage": True})
    texts = ["", ""]
    for chunk in chunks:
        assert chunk.usage is None
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["ab#1", "ab#2"]
    assert (last.choices, last.usage.prompt_tokens, last.usage.completion_tokens) == ([], 4, 8)


def test_a_stream_ends_with_done(server):
    body = {"model": "talks", "prompt": "ab", "stream": True}
    answer = server.client.post("/v1/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    assert all("usage" not in json.loads(line) for line in lines[:-1])


def test_a_stream_that_breaks_tells_the_client(client):
    heard = []
    with pytest.raises(openai.APIError, match="SCN-4003"):
        heard.extend(chunk.choices[0].text for chunk in client.completions.create(model="talks", prompt="ab!", stream=True))
    assert heard == ["a", "b"]


def test_an_error_before_the_first_part_has_its_status(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="talks", prompt="x", max_tokens=2000, stream=True)
    assert caught.value.param == "max_tokens"
    assert "'max_tokens'" in caught.value.message


def test_async_clients_beside_each_other(server):
    async def main():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:

            async def streamed(text):
                stream = await client.chat.completions.create(model="talks", messages=user(text), stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(streamed(f"你{n}") for n in range(12)), client.completions.create(model="talks", prompt="whole"))

    *streams, whole = asyncio.run(main())
    assert streams == [f"user:你{n}" for n in range(12)]
    assert whole.choices[0].text == "whole"


@pytest.mark.parametrize("n", [1, 2])
def test_leaving_ends_the_generation(server, client, lab, tmp_path, n):
    trail = tmp_path / "trail"
    stream = client.completions.create(model="talks", prompt="x" * 60, n=n, stream=True, extra_body={"seconds": 0.1, "trail": str(trail)})
    next(iter(stream))
    stream.close()
    lab.until(lambda: trail.exists() and trail.read_text() == "closed\n" * n, 3)


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────

CHAT, TEXT = "chat/completions", "completions"


@pytest.mark.parametrize(
    ("route", "changes", "param"),
    [
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": None}, "messages"),
        (CHAT, {"messages": "hello"}, "messages"),
        (CHAT, {"messages": ["hello"]}, "messages.0"),
        (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        (CHAT, {"messages": [{"role": ["user"], "content": "x"}]}, "messages.0.role"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages.0.content"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0.content.0"),
        (CHAT, {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages.0.tool_calls"),
        (CHAT, {"logprobs": True}, "logprobs"),
        (CHAT, {"top_logprobs": 3}, "top_logprobs"),
        (CHAT, {"tools": [{}]}, "tools"),
        (CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, {"presence_penalty": 1}, "presence_penalty"),
        (CHAT, {"nonsense": 1}, "nonsense"),
        (CHAT, {"prompt": "x"}, "prompt"),
        (CHAT, {"n": 0}, "n"),
        (CHAT, {"n": 10_000}, "n"),
        (CHAT, {"n": "2"}, "n"),
        (CHAT, {"n": True}, "n"),
        (CHAT, {"model": 7}, "model"),
        (CHAT, {"model": None}, "model"),
        (CHAT, {"stream": "yes"}, "stream"),
        (CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
        (CHAT, {"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        (CHAT, {"temperature": "hot"}, "temperature"),
        (CHAT, {"max_tokens": 1.5}, "max_tokens"),
        (CHAT, {"max_completion_tokens": 1001}, "max_completion_tokens"),
        (CHAT, {"seed": "x"}, "seed"),
        (CHAT, {"stop": [1]}, "stop"),
        (CHAT, {"top_k": "x"}, "top_k"),
        (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        (TEXT, {"prompt": [1, 2]}, "prompt"),
        (TEXT, {"prompt": []}, "prompt"),
        (TEXT, {"prompt": ["x"] * 9, "n": 2}, "prompt"),
        (TEXT, {"logprobs": 0}, "logprobs"),
        (TEXT, {"echo": True}, "echo"),
        (TEXT, {"suffix": "x"}, "suffix"),
        ("embeddings", {"input": 3}, "input"),
        ("embeddings", {"encoding_format": "bits"}, "encoding_format"),
        ("embeddings", {"dimensions": 8}, "dimensions"),
        ("embeddings", {"stream": True}, "stream"),
    ],
)
def test_what_is_wrong_is_400_and_names_the_field(server, route, changes, param):
    good = {CHAT: {"messages": user("x")}, TEXT: {"prompt": "x"}, "embeddings": {"input": "x"}}[route]
    answer = server.client.post(f"/v1/{route}", content=json.dumps({"model": "talks", **good, **changes}))
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b'{"model": NaN}', b"\xff", b"[" * 100_000])
def test_no_json_is_400(server, body):
    answer = server.client.post("/v1/chat/completions", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "SCN-4002")


def test_other_routes_and_methods(server):
    for method, path, status in (("GET", "/v1/completions", 405), ("POST", "/v1/models", 405), ("GET", "/v1/files", 404), ("GET", "/v1", 404)):
        answer = server.client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error"), path
    assert server.client.post("/v1/completions", content=b" " * (2**20 + 1)).status_code == 413


def test_names_that_have_no_bytes_are_refused(server):
    for changes in ({"model": "\ud800"}, {"\ud800": 1}, {"stop": "\ud800"}):
        answer = server.client.post("/v1/completions", content=json.dumps({"model": "talks", "prompt": "x", **changes}))
        assert answer.status_code in (400, 404)
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_errors_speak_the_clients_language(server):
    answer = server.client.post("/v1/completions", json={"model": "没有", "prompt": "x"}, headers={"accept-language": "zh"})
    assert "模型 '没有' 不存在" in answer.json()["error"]["message"]


def test_a_deadline_is_told(client):
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model="talks", prompt="x" * 60, stream=True, extra_body={"seconds": 1.0}, extra_headers={"x-scenarium-deadline-ms": "200"})
    assert (caught.value.status_code, caught.value.body["type"]) == (504, "server_error")


def test_metrics_and_the_access_log_count_by_scenario(server, client):
    def counted():
        text = server.client.get("/metrics").text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("scenarium_requests_total{") and 'scenario="talks"' in line)

    before = counted()
    client.chat.completions.create(model="talks", messages=user("a"), n=2, extra_headers={"x-request-id": "logged-1"})
    assert counted() == before + 2
    line = server.wait_event("request", request_id="logged-1")
    assert (line["scenario"], line["status"], line["version"]) == ("talks", 200, 1)


# ── keys and the audit log ────────────────────────────────────────────────────────────────────────────────────────────


def test_keys_limits_and_audit(lab, tmp_path):
    lab.publish("talks")
    file = KeyFile(lab.folder / "keys.sqlite")
    good, other = (file.create(scenarios=frozenset({name}))[1] for name in ("talks", "unit"))
    few = file.create(daily=3)[1]
    audit = tmp_path / "audit.jsonl"
    server = lab.start({"talks": "talks"}, f'gateway.audit="{audit}"')
    lab.until(lambda: server.client.get("/scenarios/talks/ready", headers={"authorization": f"Bearer {good}"}).status_code == 200, 30)
    ask = {"model": "talks", "messages": user("x")}

    def client(key):
        return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)

    assert client(good).chat.completions.create(**ask).choices[0].message.content == "user:x"
    with pytest.raises(openai.PermissionDeniedError):
        client(other).chat.completions.create(**ask)
    with pytest.raises(openai.AuthenticationError) as caught:
        client("wrong").chat.completions.create(**ask)
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        client("wrong").models.list()
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    assert len(client(few).completions.create(model="talks", prompt="x", n=2).choices) == 2
    with pytest.raises(openai.RateLimitError):  # each choice counts
        client(few).completions.create(model="talks", prompt="x", n=2, extra_headers={"x-scenarium-deadline-ms": "500"})
    lab.until(lambda: audit.exists() and len(audit.read_text().splitlines()) >= 2, 10)
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert ("/v1/chat/completions", "talks", 200) in [(line.get("path"), line.get("scenario"), line.get("status")) for line in lines]
