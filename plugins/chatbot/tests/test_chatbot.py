"""chatbot: the parts that need no Rasa."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

import scenarium_chatbot as plugin
from scenarium.core import ScenariumError
from scenarium.core.config import Settings
from scenarium.core.handle import Handle
from scenarium.core.registry import Registry
from scenarium_chatbot import project
from scenarium_chatbot.bots import RemoteBot, bot_settings, data_folder
from scenarium_chatbot.settings import ChatbotConfig, ChatbotModel
from scenarium_chatbot.utterances import shipped


def handle(folder: Path, *sets: str) -> Handle:
    settings = Settings.read(environ={"SCENARIUM_STORE": str(folder / "store")}, sets=sets, scenario="chatbot")
    return Handle(Registry(settings).scenario("chatbot"))


# ── data and project, without Rasa ────────────────────────────────────────────────────────────────────────────────────


def test_shipped_utterances_are_many_and_none_is_on_both_sides() -> None:
    rows = shipped()
    for language in ("zh", "en"):
        for intent in project.shipped_intents():
            texts = [row["text"] for row in rows if (row["language"], row["intent"]) == (language, intent)]
            assert len(texts) == len(set(texts)) >= 25, (language, intent)
    sides = [{row["text"].lower() for row in rows if row["_split"] == split} for split in ("train", "test")]
    assert not sides[0] & sides[1]
    assert 0.15 < len(sides[1]) / len(rows) < 0.25


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("查询订单状态", "zh"),
        ("where is it", "en"),
        ("A12345678", None),
        ("订单 A1 please", "zh"),
        ("???", None),
        ("no", "en"),
        ("20240518001", None),
    ],
)
def test_language_of_a_text(text: str, expected: str | None) -> None:
    assert plugin.language(text) == expected


def test_labels_become_intents_that_rasa_takes_and_stay_apart() -> None:
    names = project.intent_names(["card/arrival?", "card arrival", "查余额", "greet", "!!"])
    assert len(set(names.values())) == 5
    assert all("/" not in name and " " not in name for name in names.values())
    assert (names["greet"], names["查余额"]) == ("greet", "查余额")


def test_project_of_own_intents_has_a_rule_and_a_reply_for_each(tmp_path: Path) -> None:
    rows = [{"text": "多少钱\n一个", "intent": "price", "reply": "十元。"}, {"text": "hours?", "intent": "opening hours"}, {"text": "hi", "intent": "greet"}]
    config = ChatbotConfig()
    state = plugin.fit(config=config, rows=rows)
    project.write(tmp_path / "p", config, state, rows)
    nlu = yaml.safe_load((tmp_path / "p/data/nlu.yml").read_text(encoding="utf8"))["nlu"]
    assert nlu[0] == {"intent": "price", "examples": "- 多少钱 一个\n"}
    assert nlu[-2] == {"intent": "inform_order_id", "examples": "- [A12345678](order_id)\n"}
    own = yaml.safe_load((tmp_path / "p/domain/own.yml").read_text(encoding="utf8"))
    assert own["intents"] == ["opening_hours", "price"]
    assert own["responses"] == {"utter_price": [{"text": "十元。"}]}
    rules = yaml.safe_load((tmp_path / "p/data/own_rules.yml").read_text(encoding="utf8"))["rules"]
    assert [rule["steps"][1]["action"] for rule in rules] == ["utter_unanswered", "utter_price"]


def test_order_numbers_are_marked_and_brackets_of_the_user_are_not_entities(tmp_path: Path) -> None:
    rows = [{"text": "单号是A12345678吗", "intent": "order_status"}, {"text": "see [this](http://x) 12345", "intent": "order_status"}]
    config = ChatbotConfig()
    project.write(tmp_path / "p", config, plugin.fit(config=config, rows=rows), rows)
    nlu = yaml.safe_load((tmp_path / "p/data/nlu.yml").read_text(encoding="utf8"))["nlu"]
    assert nlu[0] == {"intent": "order_status", "examples": "- 单号是[A12345678](order_id)吗\n- see [this] (http://x) 12345\n"}
    assert [entry.get("intent") for entry in nlu] == ["order_status", None]


def test_own_project_is_read_and_copied_without_what_is_held_out(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    (source / "data").mkdir(parents=True)
    (source / "config.yml").write_text("language: en\n")
    (source / "domain.yml").write_text("intents: [book]\n")
    examples = "- book [two](number) seats\n- a table please\n- reserve\n"
    (source / "data" / "nlu.yml").write_text(
        yaml.safe_dump({"version": "3.1", "nlu": [{"intent": "book", "examples": examples}, {"regex": "x", "examples": "- a\n"}]})
    )
    rows = project.project_rows(source)
    assert [row["text"] for row in rows] == ["book two seats", "a table please", "reserve"]
    prepared = [{"text": row["text"], "intent": row["intent"]} for row in rows[:2]]  # of a row the fields alone reach the training
    project.copy_project(source, tmp_path / "copy", prepared)
    nlu = yaml.safe_load((tmp_path / "copy/data/nlu.yml").read_text())["nlu"]
    assert nlu == [{"intent": "book", "examples": "- book [two](number) seats\n- a table please\n"}, {"regex": "x", "examples": "- a\n"}]
    (source / "config.yml").unlink()
    with pytest.raises(ScenariumError, match="SCN-6027"):
        project.project_rows(source)


def test_settings_refuse_two_bots_and_a_broken_pattern(tmp_path: Path) -> None:
    for wrong in (("model.url=http://x", "model.archive=y"), ("model.order_id_pattern=[",)):
        with pytest.raises(ScenariumError, match="SCN-1004"):
            _ = handle(tmp_path, *wrong).scenario.config


def test_macro_f1_is_the_mean_of_the_intents() -> None:
    rows = [{"intent": intent} for intent in ("a", "a", "b", "b")]
    answers = [{"intent": intent, "fallback": False, "answered": True} for intent in ("a", "b", "b", "b")]
    figures = plugin.score(rows=rows, answers=answers)
    assert figures["accuracy"] == 0.75
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)


def test_conversations_lie_beside_the_versions_and_never_with_a_draft(tmp_path: Path) -> None:
    version = tmp_path / "scenarios" / "chatbot" / "3"
    version.mkdir(parents=True)
    assert data_folder(version) is None
    assert bot_settings(ChatbotConfig(), version)["tracker_store"] == "memory"
    (version / "manifest.json").touch()
    assert data_folder(version) == tmp_path / "data" / "chatbot"
    assert bot_settings(ChatbotConfig(), version)["tracker_store"] == f"sqlite:///{tmp_path}/data/chatbot/conversations.sqlite"


def test_messages_of_a_session_keep_their_order_and_one_failure_is_its_own() -> None:
    said: list[tuple[str, str]] = []

    class Slow:
        def message(self, session_id: str, text: str, language: str | None) -> dict[str, Any]:
            time.sleep(0.05 if text == "1" else 0)
            if text == "bad":
                raise ScenariumError("SCN-6008", name="chatbot")
            said.append((session_id, text))
            return {"replies": [], "language": "zh"}

    batch = [plugin.Ask(session_id=session, text=text) for session, text in (("a", "1"), ("b", "1"), ("a", "2"), ("b", "bad"), ("a", "3"))]
    answers = plugin.predict_batch(signature=None, model=Slow(), batch=batch)  # type: ignore[arg-type]
    assert [text for session, text in said if session == "a"] == ["1", "2", "3"]
    assert [isinstance(answer, ScenariumError) for answer in answers] == [False, False, False, True, False]


def test_an_empty_answer_becomes_the_fallback() -> None:
    output = {"replies": [], "intent": None, "confidence": 0.0, "slots": {}, "handover": False, "language": "zh"}
    assert plugin.postprocess(request=plugin.Ask(session_id="a", text="b"), output=output).replies == [plugin.FALLBACK["zh"]]


def test_training_without_the_environment_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(ScenariumError) as caught:
        handle(tmp_path).train()
    assert caught.value.code == "SCN-6004"
    assert "scenarium env create chatbot" in str(caught.value)


# ── an external server: its faults, told clearly ──────────────────────────────────────────────────────────────────────


class Faulty(BaseHTTPRequestHandler):
    """A web server that is no well-behaved Rasa; the path of the base URL chooses the fault."""

    bodies: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        kind = self.path.split("/")[1]
        if kind == "slow":
            time.sleep(1.0)
        content = {"html": b"<html>", "object": b'{"status": "ok"}', "empty": b"[]"}.get(kind, b'[{"text": "hi"}, {"image": "http://i"}]')
        try:
            self.send_response(500 if kind == "broken" else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Faulty) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.mark.parametrize(("kind", "words"), [("slow", "no answer within"), ("broken", "500"), ("html", "line 1"), ("object", "no list")])
def test_faults_of_an_external_server(server: str, kind: str, words: str) -> None:
    bot = RemoteBot(f"{server}/{kind}", None, 0.4)
    with pytest.raises(ScenariumError) as caught:
        bot.message("s", "hello", "en")
    assert caught.value.code == "SCN-6024"
    assert words in caught.value.title("en")
    bot.close()


def test_an_external_server_that_is_not_there() -> None:
    bot = RemoteBot("http://127.0.0.1:9", None, 1)
    with pytest.raises(ScenariumError, match="SCN-6024"):
        bot.message("s", "hello", "en")
    bot.close()


def test_slashes_never_reach_an_external_server(server: str) -> None:
    bot = RemoteBot(f"{server}/good/", None, 2)
    assert bot.message("s", " //restart ", "en")["replies"] == ["hi", "http://i"]
    assert Faulty.bodies[-1]["message"] == "restart"
    count = len(Faulty.bodies)
    assert bot.message("s", "/", "en")["replies"] == []
    assert len(Faulty.bodies) == count
    bot.close()


def test_only_one_of_the_ways_is_used() -> None:
    assert ChatbotModel(url="http://x").archive is None
