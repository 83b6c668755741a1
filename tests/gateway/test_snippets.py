"""Every text that ``scenarium snippet`` prints is run as it stands against a real gateway: by bash and curl, Python, Node.js."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from scenarium.core.registry import Registry
from scenarium.core.settings import Settings
from scenarium.gateway import snippets
from scenarium.gateway.keys import KeyFile
from scenarium.gateway.snippet_cli import describe

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
    from scenarium.core.registry import Plugin

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
    for language in snippets.LANGUAGES[1:]:
        with pytest.raises(AssertionError, match=r"401|SCN-4102"):
            run(snippets.snippet(about, language, "predict"), language, folder, "sk-scn-wrong")
    assert "SCN-4102" in run(snippets.snippet(about, "curl", "predict"), "curl", folder, "sk-scn-wrong")


def test_long_values_stay_readable_python():
    value = {"prices": [round(1 / n, 5) for n in range(1, 60)], "said": ["a b " * 20, 'it\'s "so"'], "none": None, "deep": {"yes": True, "text": "é\n\u2028"}}
    text = snippets._literal(value, 4)
    assert max(map(len, text.split("\n"))) <= snippets.WIDTH
    assert eval(text) == value


def cli(*arguments, **environment):
    command = [sys.executable, "-m", "scenarium.core.cli", "snippet", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)


def test_the_command(shared_lab, folder, server, token, tmp_path):
    if not shared_lab.store.versions("fraud_text"):
        pytest.importorskip("scenarium_fraud_text")
    environment = {"SCENARIUM_STORE": str(tmp_path / "store"), "SCENARIUM_GATEWAY__KEYS": str(tmp_path / "none.sqlite")}
    told = cli("fraud_text", **environment)  # not trained: the plugin's own sample
    assert told.returncode == 0, told.stderr
    assert [f"── {language} ──" in told.stdout for language in snippets.LANGUAGES] == [True] * 4
    assert "API_KEY" not in told.stdout
    only = cli("fraud_text", "--lang", "curl", "--url", "https://x.example/", "--json", SCENARIUM_GATEWAY__KEYS=str(folder / "keys.sqlite"))
    assert list(json.loads(only.stdout)) == ["curl"]
    assert 'curl https://x.example/scenarios/fraud_text/predict \\\n  -H "Authorization: Bearer $SCENARIUM_API_KEY"' in json.loads(only.stdout)["curl"]
    for wrong, code in ((("--stream",), "SCN-4005"), (("--openai",), "SCN-4303")):
        assert code in cli("fraud_text", *wrong, **environment).stderr
    assert cli("fraud_text", "--v2", "--stream", **environment).returncode == 2
    assert "SCN-1001" in cli("nothing", **environment).stderr


# ── types ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def types_of(about, folder, name):
    from scenarium.gateway.snippet_types import module

    (folder / f"{name}.py").write_text(module(about), encoding="utf8")


def test_the_types_are_what_the_client_takes_and_gives(subject, folder, token):
    types_of(subject("picture"), folder, "picture_types")
    text = f"""
import sys
sys.path.insert(0, ".")
from pathlib import Path
from typing import get_type_hints
from scenarium.client import Client
from picture_types import Answer, Request

with Client({subject("picture").url!r}) as client:
    answer = client.predict("picture", Request(image=Path("image.png").read_bytes(), top=2), into=Answer)
    assert (type(answer), answer.size, answer.top) == (Answer, 1032, 2)
    (item,) = client.predict_batch("picture", [Request(image=b"\\xff\\xfe")], into=Answer)
    assert (item.value().size, item.value().top) == (2, 1)
assert {{"image": bytes, "top": int}}.items() <= get_type_hints(Request).items()
assert {{"size": int, "top": int}}.items() <= get_type_hints(Answer).items()
try:
    Request(image=b"x", tops=2)
except ValueError as fault:
    print("refused", fault)
"""
    assert "refused" in run(text, "python", folder, token)


def test_types_of_the_same_name_do_not_meet(subject, folder, token):
    def schema(kind, title):
        inner = {"type": "object", "properties": {"title": {"title": "Title", "type": kind}}, "required": ["title"]}
        return {"title": title, "type": "object", "properties": {"part": {"$ref": "#/$defs/Part"}}, "$defs": {"Part": inner}, "required": ["part"]}

    about = subject("unit")._replace(request_schema=schema("string", "Ask"), response_schema={**schema("integer", "Told"), "additionalProperties": False})
    types_of(about, folder, "apart_types")
    text = "import sys; sys.path.insert(0, '.'); from apart_types import Answer, Request; print("
    text += "Request(part={'title': 'x'}).part.title, Answer.model_validate({'part': {'title': 5}, 'later': 1}).part.title)"
    assert run(text, "python", folder).split() == ["x", "5"]


@pytest.mark.parametrize("name", ["text_generation", "credit_risk", "market_forecast"])
def test_the_types_of_real_scenarios_take_their_samples(name, folder, tmp_path):
    pytest.importorskip(f"scenarium_{name}")
    registry = Registry(Settings.read(environ={"SCENARIUM_STORE": str(tmp_path / "store")}, sets=[f"gateway.keys={tmp_path / 'none'}"]))
    about = describe(registry, name, "http://localhost:1")
    types_of(about, folder, f"{name}_types")
    text = f"import sys; sys.path.insert(0, '.'); import {name}_types as t, json; print(t.Request(**json.loads(sys.stdin.read())).model_dump_json())"
    done = subprocess.run([sys.executable, "-c", text], cwd=folder, input=json.dumps(about.sample), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert about.sample.items() <= json.loads(done.stdout).items()
