"""chatbot: the parts that need no Rasa, and (marked ``rasa``) the dialogue, the conversation store and the restart with the real one.

The tests marked ``rasa`` need the environment: ``scenarium env create chatbot``. One bot is trained for all of them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

import scenarium_chatbot as plugin
from scenarium.core import ScenariumError
from scenarium.core.config import Settings
from scenarium.core.environments import require
from scenarium.core.handle import Handle
from scenarium.core.kit.pytest_plugin import ScenarioConformance
from scenarium.core.registry import Registry
from scenarium_chatbot import project
from scenarium_chatbot.bots import ENVIRONMENT, LocalBot, RemoteBot, bot_settings, data_folder
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
    project.copy_project(source, tmp_path / "copy", rows[:2])
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


# ── the real Rasa ─────────────────────────────────────────────────────────────────────────────────────────────────────

rasa = [pytest.mark.rasa, pytest.mark.slow, pytest.mark.timeout(900)]


class TestConformance(ScenarioConformance):
    pytestmark = rasa
    name = "chatbot"


class Talk:
    """One conversation."""

    def __init__(self, bot: Handle, session: str) -> None:
        self.bot, self.session = bot, session

    def __call__(self, text: str, **more: str) -> dict[str, Any]:
        return self.bot.predict({"session_id": self.session, "text": text, **more})

    def says(self, text: str) -> str:
        return "\n".join(self(text)["replies"])


@pytest.fixture(scope="session")
def bot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Handle]:
    """The default bot, trained once, served by the real Rasa."""
    require(ENVIRONMENT)
    trained = handle(tmp_path_factory.mktemp("bot"), "serve.session_turns=8")
    trained.train()
    yield trained
    trained.close()


@pytest.fixture
def talk(bot: Handle, request: pytest.FixtureRequest) -> Talk:
    return Talk(bot, request.node.name)


class TestRasa:
    pytestmark = rasa

    def test_it_beats_the_baseline_on_what_it_never_saw(self, bot: Handle) -> None:
        manifest = bot.version.manifest
        assert manifest.baseline
        assert manifest.metrics["accuracy"] > manifest.baseline.metrics["accuracy"]
        assert bot.store.aliases("chatbot")["aliases"]["production"] == 1
        assert manifest.data_origin == "generated"

    def test_order_status_asks_for_the_number_and_looks_it_up(self, talk: Talk) -> None:
        first = talk("查询订单状态")
        assert first["intent"] == "order_status"
        assert first["replies"] == ["请提供您的订单号。"]
        second = talk("A12345678")
        assert second["replies"] == ["订单 A12345678：已于5月3日发货，预计5月6日送达（演示数据）"]
        assert second["slots"]["order_id"] == "A12345678"
        assert not second["handover"]

    def test_english_and_a_language_of_choice(self, talk: Talk) -> None:
        assert talk.says("where is my order") == "What is your order number?"
        assert "demo data" in talk.says("a12345678")
        assert talk("hello", language="zh")["replies"][0].startswith("您好")

    def test_a_number_next_to_chinese_characters_is_found(self, talk: Talk) -> None:
        assert "订单 A23456789" in talk.says("订单号是A23456789帮我查一下")

    def test_the_order_question_again_inside_the_form_is_answered_and_asks_again(self, talk: Talk) -> None:
        talk("查询订单状态")
        for _ in range(2):
            replies = talk("查询订单状态")["replies"]
            assert replies == ["查询需要订单号，它在您的下单确认信息中。", "请提供您的订单号。"]
        assert "A12345678" in talk.says("A12345678")

    @pytest.mark.parametrize("noise", ["fghjk zxcvb qqq", "???", "12", "唔哩哇啦"])
    def test_gibberish_inside_the_form_never_looks_an_order_up(self, talk: Talk, noise: str) -> None:
        talk("查询订单状态")
        said = talk(noise)
        text = "\n".join(said["replies"])
        assert "None" not in text
        assert "没有找到" not in text
        assert "There is no order" not in text
        assert "order_id" not in said["slots"]
        assert "A12345678" in talk.says("A12345678")

    def test_a_question_between_is_answered_and_the_form_goes_on(self, talk: Talk) -> None:
        talk("查询订单状态")
        assert talk("今天天气怎么样")["replies"] == ["抱歉，我只能协助查询订单、申请退款或转接人工。", "请提供您的订单号。"]
        assert "B00456789" in talk.says("B00456789")

    def test_handover_leaves_the_form(self, talk: Talk) -> None:
        talk("查询订单状态")
        said = talk("转人工")
        assert said["handover"]
        assert said["replies"] == ["正在为您转接人工客服，请稍候。"]
        after = talk("谢谢")
        assert not after["handover"]
        assert after["replies"] == ["不客气，请问还有其他需要吗？"]

    def test_no_leaves_the_form(self, talk: Talk) -> None:
        talk("where is my order")
        assert talk.says("never mind").startswith("All right, we leave that")
        assert talk.says("hello").startswith("Hello!")

    def test_an_unknown_order_is_told_and_forgotten(self, talk: Talk) -> None:
        talk("查询订单状态")
        said = talk("Z98765432")
        assert said["replies"] == ["没有找到订单 Z98765432，请核对后重新发送订单号。"]
        assert "order_id" not in said["slots"]

    def test_refund_with_confirmation_is_written_down(self, bot: Handle, talk: Talk) -> None:
        talk("我要退款")
        assert talk("A23456789")["replies"] == ["确定要为订单 A23456789 申请退款吗？请回答“是”或“否”。"]
        assert "R" in talk.says("是的")
        folder = data_folder(bot.version.folder)
        assert folder
        written = [json.loads(line) for line in (folder / "refunds.jsonl").read_text(encoding="utf8").splitlines()]
        assert [(entry["order_id"], entry["session_id"]) for entry in written] == [("A23456789", talk.session)]

    def test_refund_that_is_refused_is_not_written(self, talk: Talk) -> None:
        talk("I want a refund")
        talk("A12345678")
        assert talk.says("no") == "Nothing was requested; the order stays as it is."

    def test_refund_in_the_middle_of_the_order_form_changes_over(self, talk: Talk) -> None:
        talk("查询订单状态")
        assert talk("我要退款")["replies"] == ["请提供您的订单号。"]
        assert "确定要为订单 A12345678 申请退款吗" in talk.says("A12345678")

    @pytest.mark.parametrize("text", ["/restart", "/session_start", "/handover", '/inform_order_id{"order_id": "A12345678"}', "//greet", "/"])
    def test_a_leading_slash_is_no_command(self, talk: Talk, text: str) -> None:
        talk("查询订单状态")
        said = talk(text)
        assert said["replies"]
        assert said["confidence"] < 1.0 or said["intent"] is None
        # The form is still open: nothing was restarted.
        if not said["handover"] and "order_id" not in said["slots"]:
            assert "A23456789" in talk.says("A23456789")

    def test_no_message_stays_without_a_reply(self, talk: Talk) -> None:
        for text in ("你好", "谢谢", "是", "不", "再见", "???", "😀", "qwpoeiruty", "给我讲个笑话", "a" * 2000):
            assert all(talk(text)["replies"]), text

    def test_long_conversations_begin_a_new_session_and_keep_what_they_know(self, bot: Handle, talk: Talk) -> None:
        talk("查询订单状态")
        talk("A12345678")
        for _ in range(12):
            assert talk("你好")["slots"]["order_id"] == "A12345678"
        folder = data_folder(bot.version.folder)
        assert folder
        with sqlite3.connect(folder / "conversations.sqlite") as database:
            query = "SELECT count(*) FROM events WHERE sender_id = ? AND action_name = 'action_session_start'"
            (sessions,) = database.execute(query, (talk.session,)).fetchone()
        database.close()
        assert sessions == 2

    def test_many_sessions_at_once_keep_apart(self, bot: Handle) -> None:
        orders = ["A12345678", "A23456789", "B00456789", "20240518001"]
        with ThreadPoolExecutor(8) as pool:
            first = list(pool.map(lambda n: Talk(bot, f"many-{n}").says("查询订单状态"), range(24)))
            second = list(pool.map(lambda n: Talk(bot, f"many-{n}")(orders[n % 4]), range(24)))
        assert set(first) == {"请提供您的订单号。"}
        assert [answer["slots"]["order_id"] for answer in second] == [orders[n % 4] for n in range(24)]

    def test_a_blank_message_names_the_field(self, talk: Talk) -> None:
        with pytest.raises(ScenariumError) as caught:
            talk("   ")
        assert caught.value.field == "text"

    def test_an_open_form_survives_the_death_of_the_process(self, bot: Handle, talk: Talk) -> None:
        assert talk("查询订单状态")["replies"] == ["请提供您的订单号。"]
        model = bot.runtime.model
        assert isinstance(model, LocalBot)
        dead = model.engine.process
        dead.popen.kill()
        codes = set()
        end = time.monotonic() + 300
        while time.monotonic() < end:
            try:
                said = talk.says("A12345678")
                break
            except ScenariumError as fault:
                codes.add(fault.code)
                time.sleep(0.5)
        assert codes <= {"SCN-6007", "SCN-6008"}
        assert codes
        assert "订单 A12345678" in said
        assert model.engine.process is not dead

    def test_own_archive_own_orders_and_own_actions(self, bot: Handle, tmp_path: Path) -> None:
        archive = tmp_path / "mine.tar.gz"
        shutil.copy(bot.version.folder / "model.tar.gz", archive)
        (tmp_path / "orders.csv").write_text("order_id,status\nA55555555,on its way\n")
        (tmp_path / "own.py").write_text(
            "from rasa_sdk import Action\n"
            "class Mine(Action):\n"
            "    def name(self): return 'action_handover'\n"
            "    async def run(self, dispatcher, tracker, domain):\n"
            "        dispatcher.utter_message(text='Anna takes over'); return []\n"
        )
        own = handle(tmp_path, f"model.archive={archive}", f"serve.orders={tmp_path / 'orders.csv'}", f"serve.actions={tmp_path / 'own.py'}")
        trained = own.train()
        try:
            assert trained.became_production
            talk = Talk(own, "own")
            talk("where is my order")
            assert talk.says("A55555555") == "Order A55555555: on its way"
            assert talk("talk to a human")["replies"] == ["Anna takes over"]
        finally:
            own.close()

    def test_an_external_rasa_server(self, bot: Handle, tmp_path: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        python = require(ENVIRONMENT)
        command = [python, "-m", "rasa", "run", "-m", bot.version.folder / "model.tar.gz", "--enable-api", "-i", "127.0.0.1", "-p", str(port)]
        environ = {**os.environ, "RASA_TELEMETRY_ENABLED": "false", "SQLALCHEMY_SILENCE_UBER_WARNING": "1", "PYTHONPATH": str(ENVIRONMENT.folder)}
        server = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            remote = RemoteBot(f"http://127.0.0.1:{port}", None, 30)
            end = time.monotonic() + 240
            while True:
                try:
                    remote.parse(["你好"])
                    break
                except ScenariumError:
                    assert time.monotonic() < end
                    assert server.poll() is None
                    time.sleep(1)
            remote.close()
            own = handle(tmp_path, f"model.url=http://127.0.0.1:{port}", "serve.timeout_s=30")
            trained = own.train()
            assert trained.became_production
            assert trained.version.manifest.metrics["accuracy"] == bot.version.manifest.metrics["accuracy"]
            assert Talk(own, "far")("hello")["replies"][0].startswith("Hello!")
            own.close()
        finally:
            server.terminate()
            server.wait(30)

    def test_a_store_that_cannot_be_reached_is_told_without_its_password(self, bot: Handle) -> None:
        settings = bot_settings(bot.scenario.config, bot.version.folder)
        with pytest.raises(ScenariumError) as caught:
            LocalBot({**settings, "tracker_store": "postgresql://user:secret@127.0.0.1:9/talks"}, 10)
        assert caught.value.code == "SCN-6025"
        assert "secret" not in str(caught.value)

    def test_nothing_was_written_into_the_current_folder(self, bot: Handle) -> None:
        assert not (Path(os.getcwd()) / ".rasa").exists()


def test_only_one_of_the_ways_is_used() -> None:
    assert ChatbotModel(url="http://x").archive is None
