"""The two ways to a bot: a process of the Rasa environment, and a Rasa server somewhere else. Same methods, same values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx

from scenarium.core import Environment, ScenariumError
from scenarium.core.engines.environment_engine import EnvironmentEngine
from scenarium.core.errors import Words
from scenarium_chatbot.settings import ChatbotConfig

HERE = Path(__file__).parent
ARCHIVE = "model.tar.gz"
DEMO_ORDERS = HERE / "dialogue" / "orders.csv"
ENVIRONMENT = Environment("chatbot", ("3.10", "3.11"), HERE / "rasa-3.6")


class Bot(Protocol):
    """What answers messages."""

    def message(self, session_id: str, text: str, language: str | None) -> dict[str, Any]:
        """One turn: ``replies``, ``intent``, ``confidence``, ``slots``, ``handover``, ``language``."""
        ...

    def parse(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Intents of texts without a conversation: ``intent``, ``confidence``, ``fallback``."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


def data_folder(version: Path) -> Path | None:
    """Where conversations are kept beside the versions: ``<store>/data/<scenario>``; None for a version that is only being made.

    A version of a remote store lies in a cache, which may be emptied: then the user's data folder is taken.
    """
    if not (version / "manifest.json").is_file():
        return None
    name = version.parent.name
    if version.parents[1].name == "scenarios":
        return version.parents[2] / "data" / name
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "scenarium" / "data" / name


def bot_settings(config: ChatbotConfig, version: Path) -> dict[str, Any]:
    """What the bot's process must know, as JSON values."""
    serve, folder = config.serve, data_folder(version)
    store = serve.tracker_store
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    if folder is None:
        store = "memory"
    elif store == "sqlite":
        store = f"sqlite:///{(folder / 'conversations.sqlite').resolve()}"
    return {
        "role": "serve",
        "threads": serve.threads or 1,
        "archive": str((version / ARCHIVE).resolve()),
        "tracker_store": store,
        "orders": str(Path(serve.orders).expanduser().resolve()) if serve.orders else str(DEMO_ORDERS),
        "demo": serve.orders is None,
        "actions": str(Path(serve.actions).expanduser().resolve()) if serve.actions else None,
        "refunds": str(folder / "refunds.jsonl") if folder else None,
        "session_turns": serve.session_turns,
    }


class LocalBot:
    """A bot in a process of the Rasa environment."""

    def __init__(self, settings: Mapping[str, Any], timeout: float) -> None:
        self.engine = EnvironmentEngine(ENVIRONMENT, settings)
        self.timeout = timeout

    def message(self, session_id: str, text: str, language: str | None) -> dict[str, Any]:
        answer: dict[str, Any] = self.engine.call("message", timeout=self.timeout, session_id=session_id, text=text, language=language)
        return answer

    def parse(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for start in range(0, len(texts), 64):
            found += self.engine.call("parse", timeout=max(60.0, self.timeout), texts=list(texts[start : start + 64]))
        return found

    def close(self) -> None:
        self.engine.close()


class RemoteBot:
    """A bot behind Rasa's REST channel: ``POST /webhooks/rest/webhook``; intents by ``POST /model/parse`` where the server allows it."""

    def __init__(self, url: str, token: str | None, timeout: float) -> None:
        self.url = url.rstrip("/")
        self.client = httpx.Client(timeout=httpx.Timeout(timeout, connect=min(5.0, timeout)), params={"token": token} if token else None)

    def message(self, session_id: str, text: str, language: str | None) -> dict[str, Any]:
        text = text.strip().lstrip("/").strip()
        replies = self._post("/webhooks/rest/webhook", {"sender": session_id, "message": text, "metadata": {"language": language}}) if text else []
        if not isinstance(replies, list):
            reason = Words("the answer is no list of messages: is this a Rasa server?", "回答不是消息列表：它是 Rasa 服务器吗？")
            raise ScenariumError("SCN-6024", url=self.url, reason=reason)
        texts = [str(part) for reply in replies for part in (reply.get("text"), reply.get("image")) if part]
        handover = any(isinstance(reply.get("custom"), dict) and reply["custom"].get("handover") is True for reply in replies)
        return {"replies": texts, "intent": None, "confidence": 0.0, "slots": {}, "handover": handover, "language": language or "en"}

    def parse(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for text in texts:
            parsed = self._post("/model/parse", {"text": text})
            ranking = [entry for entry in parsed.get("intent_ranking", [parsed["intent"]]) if entry["name"] != "nlu_fallback"]
            best: dict[str, Any] = ranking[0] if ranking else {"name": None, "confidence": 0.0}
            unsure = parsed["intent"]["name"] in (None, "nlu_fallback")
            found.append({"intent": best["name"], "confidence": float(best["confidence"]), "fallback": unsure})
        return found

    def close(self) -> None:
        self.client.close()

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer.

        Raises:
            ScenariumError: SCN-6024, with what the server or the network said.
        """
        try:
            answer = self.client.post(self.url + path, json=body)
            answer.raise_for_status()
            return answer.json()
        except httpx.TimeoutException:
            limit = self.client.timeout.read
            raise ScenariumError("SCN-6024", url=self.url, reason=Words(f"no answer within {limit} s", f"{limit} 秒内没有回答")) from None
        except httpx.HTTPStatusError as fault:
            raise ScenariumError("SCN-6024", url=self.url, reason=f"{path} answered {fault.response.status_code}: {fault.response.text[:200]}") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as fault:
            raise ScenariumError("SCN-6024", url=self.url, reason=str(fault) or type(fault).__name__) from None
