"""A scenario whose answers come from another server of the OpenAI API: the unmodified client, and a second gateway as that server."""

from __future__ import annotations

import json
import time

import openai
import pytest

from scenarium.gateway.keys import KeyFile, Rate
from tests.gateway.conftest import Lab, until

KEY_ENV = "TEST_OF_THE_UPSTREAM_KEY"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """A gateway that has the model and asks for keys: one without limits, and one that may ask once in an hour."""
    lab = Lab(tmp_path_factory.mktemp("upstream"))
    lab.publish("talks")
    keys = KeyFile(lab.folder / "keys.sqlite")
    key, narrow = keys.create()[1], keys.create(rate=Rate(1, 3600))[1]
    found = lab.start({"talks": "talks"})
    found.key, found.narrow = key, narrow
    found.client.headers["authorization"] = f"Bearer {key}"
    found.ready("talks")
    yield found
    lab.close()


@pytest.fixture(scope="module")
def front(upstream, shared_lab, monkeypatch_module):
    """A gateway that has none of its scenarios' models."""
    for name, key in ((KEY_ENV, upstream.key), (f"{KEY_ENV}_NARROW", upstream.narrow), (f"{KEY_ENV}_WRONG", "sk-nothing")):
        monkeypatch_module.setenv(name, key)
    sets = []
    for name, url, env, model in (
        ("chat", upstream.url, KEY_ENV, "talks"),
        ("narrow", upstream.url, f"{KEY_ENV}_NARROW", "talks"),
        ("stranger", upstream.url, f"{KEY_ENV}_WRONG", "talks"),
        ("misnamed", upstream.url, KEY_ENV, "nothing"),
        ("gone", "http://127.0.0.1:9", KEY_ENV, "talks"),
    ):
        serve = f"scenarios.{name}.serve.upstream"
        sets += [f"scenarios.{name}.plugin=talks", f"{serve}={url}/v1", f"{serve}_key_env={env}", f"{serve}_model={model}"]
    return shared_lab.start({"talks": "talks"}, *sets, "scenarios.wrong.plugin=talks", "scenarios.wrong.serve.upstream=ftp://x")


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as found:
        yield found


@pytest.fixture(scope="module")
def client(front):
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def user(text):
    return [{"role": "user", "content": text}]


def refused(kind, client, model, **options):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(model=model, messages=user("x"), **options)
    return caught.value


def test_a_scenario_without_a_version_is_a_model(front, client):
    assert {"chat", "gone"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("chat").owned_by == "upstream"
    assert front.client.post("/scenarios/chat/predict", json={"prompt": "x"}).status_code == 503  # no version of its own


def test_whole_answers(client):
    answer = client.chat.completions.create(model="chat", messages=user("你好"), n=2, seed=5)
    assert [choice.message.content for choice in answer.choices] == ["user:你好#5", "user:你好#6"]
    assert client.completions.create(model="chat", prompt="ab").choices[0].text == "ab"
    assert client.embeddings.create(model="chat", input="abc").data[0].embedding == [1.5, 0.25]


def test_streams_come_as_they_are_made(client):
    began = time.monotonic()
    stream = client.chat.completions.create(model="chat", messages=user("0123456789"), stream=True, extra_body={"seconds": 0.1})
    said = []
    for chunk in stream:
        said.append((time.monotonic() - began, chunk.choices[0].delta.content or ""))
    assert "".join(text for _, text in said) == "user:0123456789"
    assert said[1][0] < 0.7 < said[-1][0]


def test_a_client_that_leaves_ends_the_work_upstream(client, tmp_path):
    trail = tmp_path / "trail"
    options = {"seconds": 0.1, "trail": str(trail)}
    stream = client.chat.completions.create(model="chat", messages=user("x" * 60), stream=True, extra_body=options)
    next(stream)
    assert not trail.exists()
    stream.close()
    until(trail.exists, 3)  # the whole would take 6 s
    assert trail.read_text() == "closed\n"


def test_a_deadline_ends_the_work_upstream(client, tmp_path):
    trail = tmp_path / "trail"
    options = {"seconds": 0.1, "trail": str(trail)}
    began = time.monotonic()
    with pytest.raises(openai.APIError) as caught:
        list(client.completions.create(model="chat", prompt="x" * 60, stream=True, extra_body=options, extra_headers={"X-Scenarium-Deadline-Ms": "500"}))
    assert caught.value.code == "SCN-4007"
    assert time.monotonic() - began < 3
    until(trail.exists, 3)


def test_errors_say_whose_fault_it_is(front, client):
    ours = refused(openai.BadRequestError, client, "chat", extra_body={"no_such_field": 1})
    assert ours.code == "SCN-4306"
    assert "no_such_field" in ours.message
    assert refused(openai.InternalServerError, client, "stranger").status_code == 502
    assert refused(openai.InternalServerError, client, "misnamed").code == "SCN-4305"
    assert refused(openai.NotFoundError, client, "unknown").code == "model_not_found"
    gone = refused(openai.InternalServerError, client, "gone")
    assert (gone.status_code, gone.code, gone.response.headers["retry-after"]) == (503, "SCN-4304", "1")
    client.chat.completions.create(model="narrow", messages=user("x"))
    again = refused(openai.RateLimitError, client, "narrow")
    assert again.code == "SCN-4307"
    assert 1 < int(again.response.headers["retry-after"]) <= 3600
    with pytest.raises(openai.APIError) as caught:
        list(client.chat.completions.create(model="chat", messages=user("ab!"), stream=True))
    assert "in the middle" in caught.value.message


def test_half_of_a_surrogate_pair_goes_nowhere(front):
    for path, fields, field in (
        ("chat/completions", {"messages": user("\ud800")}, "messages"),
        ("completions", {"prompt": "x", "stop": "\udfff"}, "prompt"),
        ("embeddings", {"input": "x", "\ud800": 1}, "input"),
    ):
        body = json.dumps({"model": "chat", **fields})
        answer = front.client.post(f"/v1/{path}", content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["param"], answer.json()["error"]["code"]) == (400, field, "SCN-4301")


def test_requests_are_counted(front, client):
    def counted(outcome):
        text = front.client.get("/metrics").text
        return float(text.split(f'scenarium_requests_total{{outcome="{outcome}",scenario="chat"}} ')[1].split("\n")[0])

    before = counted("ok")
    client.completions.create(model="chat", prompt="ab")
    assert counted("ok") == before + 1


def test_a_wrong_address_is_told(front):
    shown = front.client.get("/scenarios/wrong").json()
    assert shown["state"] == "failed"
    assert "serve.upstream" in str(shown)
