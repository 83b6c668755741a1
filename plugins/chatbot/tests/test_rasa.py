"""chatbot with the real Rasa: the dialogue, the conversation store and the restart. One bot is trained for all of them.

The tests need the environment: ``scenarium env create chatbot``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from scenarium.core import ScenariumError
from scenarium.core.config import Settings
from scenarium.core.environments import require
from scenarium.core.handle import Handle
from scenarium.core.kit.pytest_plugin import ScenarioConformance
from scenarium.core.registry import Registry
from scenarium_chatbot.bots import ENVIRONMENT, LocalBot, RemoteBot, bot_settings, data_folder
from tests.gateway.conftest import Lab, redis_server


def handle(folder: Path, *sets: str) -> Handle:
    settings = Settings.read(environ={"SCENARIUM_STORE": str(folder / "store")}, sets=sets, scenario="chatbot")
    return Handle(Registry(settings).scenario("chatbot"))


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
        report = (bot.version.folder / "report.html").read_text("utf8")
        assert "<svg" in report.partition("<h2>Intents of held-out utterances")[2].partition("<h2>")[0]

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

    def test_an_open_form_in_redis_survives_the_death_of_the_gateways_worker(self, bot: Handle, tmp_path: Path) -> None:
        """Only a bot that knows what was said before takes "yes" for a refund."""
        served = Lab(tmp_path)
        served.store = bot.store

        def say(text: str, session: str = "kept") -> str:
            answer = gateway.client.post("/scenarios/chatbot/predict", json={"session_id": session, "text": text})
            assert answer.status_code == 200, answer.text
            return "\n".join(answer.json()["replies"])

        with redis_server(tmp_path) as (port, _):
            try:
                gateway = served.start(None, f"scenarios.chatbot.serve.tracker_store=redis://127.0.0.1:{port}/0")
                gateway.ready("chatbot", timeout=120)
                assert say("查询订单状态") == "请提供您的订单号。"
                assert say("我要退款", "refund") == "请提供您的订单号。"
                assert say("A23456789", "refund").startswith("确定要为订单 A23456789 申请退款吗")
                worker = gateway.wait_event("worker_ready", scenario="chatbot")["pid"]
                os.kill(worker, signal.SIGKILL)
                served.until(lambda: [event["event"] for event in gateway.events].count("worker_ready") == 2, 120)
                assert "订单 A12345678" in say("A12345678")
                assert say("是的", "refund").startswith("已为订单 A23456789 提交退款申请")
                assert "退款申请" not in say("是的", "another")
            finally:
                served.close()

    def test_it_talks_in_the_terminal(self, bot: Handle) -> None:
        command = [sys.executable, "-m", "scenarium.core.cli", "predict", "chatbot", "-i"]
        environ = {**os.environ, "SCENARIUM_STORE": bot.store.root, "SCENARIUM_LANG": "en"}
        done = subprocess.run(command, input="查询订单状态\nA12345678\n\n", env=environ, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.index("请提供您的订单号。") < done.stdout.index("订单 A12345678：已于5月3日发货")

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

    def test_own_project_is_trained_and_answers(self, tmp_path: Path) -> None:
        require(ENVIRONMENT)
        own = handle(tmp_path, f"model.project={Path(__file__).parent / 'table_bot'}")
        trained = own.train()
        try:
            assert trained.became_production
            assert trained.version.manifest.data_origin == "real"
            talk = Talk(own, "own")
            assert talk("what time do you open on sunday")["replies"] == ["From nine to five."]
            said = talk("a table for 6 please")
            assert said["replies"] == ["A table for 6, noted."]
            assert said["slots"] == {"people": "6"}
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
