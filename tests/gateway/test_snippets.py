"""Every text that ``scenarium snippet`` prints is run as it stands against a real gateway: by bash and curl, Python, Node.js."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import get_type_hints

import pytest
from pydantic import ValidationError

from scenarium.client import Client
from scenarium.core.cli import run as run_command
from scenarium.core.registry import Plugin, Registry
from scenarium.core.settings import Settings
from scenarium.gateway import snippets
from scenarium.gateway.keys import KeyFile
from scenarium.gateway.snippet_cli import describe
from scenarium.gateway.snippet_types import module

SAYS = {"curl": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"], "httpx": [sys.executable, "-c"]}
NODE = ["node", "--input-type=module", "-e"]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4


@pytest.fixture(scope="module")
def token(shared_lab):
    return KeyFile(shared_lab.folder / "keys.sqlite").create()[1]


@pytest.fixture(scope="module")
def server(shared_lab, token):
    for name in ("unit", "picture", "talks"):
        shared_lab.publish(name)
    found = shared_lab.start({name: name for name in ("unit", "picture", "talks")})
    found.client.headers["authorization"] = f"Bearer {token}"
    found.ready("unit", "picture", "talks")
    return found


@pytest.fixture(scope="module")
def folder(shared_lab):
    (shared_lab.folder / "image.png").write_bytes(PNG)
    return shared_lab.folder


@pytest.fixture
def subject(shared_lab, server):
    """A scenario as the command describes it."""

    def found(name, **changes):
        settings = Settings.read(environ={"SCENARIUM_STORE": shared_lab.store.root}, sets=[f"gateway.keys={shared_lab.folder / 'keys.sqlite'}"])
        registry = Registry(settings, {name: _plugin(name)})
        return describe(registry, name, server.url)._replace(**changes)

    return found


def _plugin(name):
    from .conftest import PLUGINS

    return Plugin(name, str(PLUGINS / f"{name}.py"), f"scenarium-{name}", "0.1.0")


def image(**more):
    return {"image": base64.urlsafe_b64encode(PNG).decode(), **more}


def run(text, language, folder, token=""):
    done = subprocess.run(
        [*SAYS.get(language, NODE), text], cwd=folder, env={**os.environ, "SCENARIUM_API_KEY": token}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{text}\n{done.stderr}"
    return done.stdout


CHAT = {"messages": [{"role": "user", "content": "你好"}], "max_new_tokens": 40, "temperature": 0.0}
HARD = 'it\'s 100 % "so"\n\\n 你好'
CASES = [
    ("unit", "predict", {}, ["你好", '"answer": "one"']),
    ("unit", "stream", {}, ["你好", '"part": 0', '"part": 1', '"part": 2']),
    ("unit", "v2", {"sample": {"text": HARD, "seconds": 0.0, "trail": None}}, ["100 %", "你好"]),
    ("picture", "predict", {"sample": image()}, ['"size": 1032', '"top": 1']),
    ("picture", "predict", {"sample": image(top=7)}, ['"size": 1032', '"top": 7']),
    ("picture", "v2", {"sample": image(top=7)}, ['"size": 1032', '"top": 7']),
    ("talks", "openai", {"sample": CHAT}, ["user:你好"]),
    ("talks", "openai stream", {}, ['"text": "你"', '"text": "好"']),
    ("talks", "openai", {"sample": {"input": "你好"}}, ["0.25"]),
]
"""Scenario, way, what is other about it, and what its answer must hold, whatever the quotes and spaces of the language."""


def plain(text):
    return text.replace("\\", "").replace("'", '"').replace(" ", "")


@pytest.mark.parametrize("language", snippets.LANGUAGES)
def test_every_text_runs(subject, folder, token, language):
    abouts = [subject(name, **changes) for name, _, changes, _ in CASES]
    assert all(about.keyed for about in abouts)
    texts = [snippets.snippet(about, language, way.split()[0], way.endswith("stream")) for about, (_, way, _, _) in zip(abouts, CASES, strict=True)]
    assert token not in "".join(texts)
    with ThreadPoolExecutor(2) as pool:
        for text, told, (*_, wanted) in zip(texts, pool.map(lambda text: run(text, language, folder, token), texts), CASES, strict=True):
            assert [word for word in wanted if plain(word) not in plain(told)] == [], f"{text}\n{told}"


def test_a_wrong_key_is_an_error_of_the_program(subject, folder):
    about = subject("unit")
    for language in ("python", "javascript"):
        with pytest.raises(AssertionError, match="SCN-4102"):
            run(snippets.snippet(about, language, "predict"), language, folder, "sk-scn-wrong")
    assert "SCN-4102" in run(snippets.snippet(about, "curl", "predict"), "curl", folder, "sk-scn-wrong")


def test_long_values_stay_readable_python():
    value = {"prices": [round(1 / n, 5) for n in range(1, 60)], "said": ["a b " * 20, 'it\'s "so"'], "none": None, "deep": {"yes": True, "text": "é\n\u2028"}}
    text = snippets._literal(value, 4)
    assert max(map(len, text.split("\n"))) <= snippets.WIDTH
    assert eval(text) == value


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Run ``scenarium snippet`` over the installed plugins, without versions and keys; what it prints, and on stderr."""
    monkeypatch.setenv("SCENARIUM_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("SCENARIUM_GATEWAY__KEYS", str(tmp_path / "none.sqlite"))

    def told(*arguments, code=0):
        assert run_command(["snippet", *arguments]) == code
        return capsys.readouterr()

    return told


def test_the_command(cli, folder, token, monkeypatch):
    everything = cli("fraud_text").out  # not trained: the plugin's own sample
    assert [f"── {language} ──" in everything for language in snippets.LANGUAGES] == [True] * 4
    assert "API_KEY" not in everything
    assert "SCN-4005" in cli("fraud_text", "--stream", code=1).err
    assert "SCN-4303" in cli("fraud_text", "--openai", code=1).err
    assert "SCN-1001" in cli("nothing", code=1).err
    cli("fraud_text", "--v2", "--stream", code=2)
    monkeypatch.setenv("SCENARIUM_GATEWAY__KEYS", str(folder / "keys.sqlite"))
    only = json.loads(cli("fraud_text", "--lang", "curl", "--url", "https://x.example/", "--json").out)
    assert list(only) == ["curl"]
    assert 'curl https://x.example/scenarios/fraud_text/predict \\\n  -H "Authorization: Bearer $SCENARIUM_API_KEY"' in only["curl"]


# ── types ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def types_of(about, monkeypatch):
    """The module of a scenario's types."""
    found = ModuleType(f"{about.name}_types")
    monkeypatch.setitem(sys.modules, found.__name__, found)  # where pydantic looks names up
    exec(module(about), found.__dict__)
    return found


def test_the_types_are_what_the_client_takes_and_gives(subject, token, monkeypatch):
    types = types_of(subject("picture"), monkeypatch)
    assert {"image": bytes, "top": int}.items() <= get_type_hints(types.Request).items()
    assert {"size": int, "top": int}.items() <= get_type_hints(types.Answer).items()
    with Client(subject("picture").url, api_key=token) as client:
        answer = client.predict("picture", types.Request(image=PNG, top=2), into=types.Answer)
        assert (type(answer), answer.size, answer.top) == (types.Answer, 1032, 2)
        (item,) = client.predict_batch("picture", [types.Request(image=b"\xff\xfe")], into=types.Answer)
        assert (item.value().size, item.value().top) == (2, 1)
    with pytest.raises(ValidationError, match="tops"):
        types.Request(image=b"x", tops=2)


def test_types_of_the_same_name_do_not_meet(subject, monkeypatch):
    def schema(kind, title):
        inner = {"type": "object", "properties": {"title": {"title": "Title", "type": kind}}, "required": ["title"]}
        return {"title": title, "type": "object", "properties": {"part": {"$ref": "#/$defs/Part"}}, "$defs": {"Part": inner}, "required": ["part"]}

    about = subject("unit")._replace(request_schema=schema("string", "Ask"), response_schema={**schema("integer", "Told"), "additionalProperties": False})
    types = types_of(about, monkeypatch)
    assert types.Request(part={"title": "x"}).part.title == "x"
    assert types.Answer.model_validate({"part": {"title": 5}, "later": 1}).part.title == 5


@pytest.mark.parametrize("name", ["text_generation", "credit_risk"])
def test_the_types_of_real_scenarios_take_their_samples(name, tmp_path, monkeypatch):
    registry = Registry(Settings.read(environ={"SCENARIUM_STORE": str(tmp_path / "store")}, sets=[f"gateway.keys={tmp_path / 'none'}"]))
    about = describe(registry, name, "http://localhost:1")
    types = types_of(about, monkeypatch)
    assert about.sample.items() <= json.loads(types.Request(**about.sample).model_dump_json()).items()
