"""Serves one trained Rasa archive: one message in, the bot's replies out, with the conversation kept in a tracker store."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import weakref
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import sqlalchemy
from aiohttp import ClientResponseError
from rasa.core.agent import Agent
from rasa.core.channels.channel import UserMessage
from rasa.core.nlg.response import TemplatedNaturalLanguageGenerator
from rasa.core.tracker_store import AwaitableTrackerStore, InMemoryTrackerStore, RedisTrackerStore, SQLTrackerStore, TrackerStore
from rasa.shared.core.domain import Domain
from rasa.shared.core.events import ActionExecuted, SessionStarted, UserUttered
from rasa.shared.core.trackers import DialogueStateTracker
from rasa.utils.endpoints import EndpointConfig
from rasa_sdk.executor import ActionExecutor
from rasa_sdk.interfaces import ActionExecutionRejection
from scenarium_environment import Fault

HANDOVER = "action_handover"
INTERNAL = ("requested_slot", "session_started_metadata", "language")
"""Slots that the dialogue machinery needs and no client does."""
MEMORY = "memory"


class InProcessActions(EndpointConfig):
    """Custom actions without an action server: the bot runs them itself, so none can be down."""

    def __init__(self, executor: ActionExecutor) -> None:
        super().__init__(url="inprocess://actions")
        self.executor = executor

    async def request(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await self.executor.run(kwargs["json"])
        except ActionExecutionRejection as fault:
            # The form of refusal that the caller knows from an action server.
            body = json.dumps({"error": str(fault), "action_name": fault.action_name})
            raise ClientResponseError(None, (), status=400, message=body) from fault


class LanguageAware(TemplatedNaturalLanguageGenerator):
    """Responses whose condition on the slot ``language`` is judged by the language of the user's last message."""

    async def generate(self, utter_action: str, tracker: DialogueStateTracker, output_channel: str, **kwargs: Any) -> dict[str, Any] | None:
        slots = {**tracker.current_slot_values(), "language": language(tracker)}
        return self.generate_from_slots(utter_action, slots, output_channel, **kwargs)


def language(tracker: DialogueStateTracker) -> str:
    """The language of the user's last message that has one (a bare number has none); English before any."""
    found = (event.metadata.get("language") for event in reversed(tracker.events) if isinstance(event, UserUttered) and event.metadata)
    return next(filter(None, found), "en")


class Remembering(AwaitableTrackerStore):
    """A tracker store that hands back the tracker which was saved last, so that a turn is read only once."""

    def __init__(self, store: TrackerStore) -> None:
        super().__init__(store)
        self.saved: dict[str, DialogueStateTracker] = {}

    async def save(self, tracker: DialogueStateTracker) -> None:
        await super().save(tracker)
        self.saved[tracker.sender_id] = tracker


class Bot:
    """The service: ``message`` and ``parse``."""

    def __init__(self, agent: Agent, store: Remembering, session_turns: int) -> None:
        self.agent = agent
        self.store = store
        self.session_turns = session_turns
        self.locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self.ready = {"intents": sorted(agent.domain.intents)}

    async def message(self, session_id: str, text: str, language: str | None) -> dict[str, Any]:
        """Answer one message. Messages of one session are answered in the order of arrival, those of different sessions side by side."""
        # A leading slash would be a command to Rasa: an intent of the client's choice, or a restart of the session.
        text = text.strip().lstrip("/").strip()
        if not text:
            return {"replies": [], "intent": None, "confidence": 0.0, "slots": {}, "handover": False, "language": language or "en"}
        lock = self.locks.setdefault(session_id, asyncio.Lock())
        async with lock:
            message = UserMessage(text, sender_id=session_id, metadata={"language": language})
            replies = await self.agent.handle_message(message)
            tracker = self.store.saved.pop(session_id)
            answer = self.describe(tracker, replies or [])
            await self.shorten(tracker)
        return answer

    def describe(self, tracker: DialogueStateTracker, replies: list[dict[str, Any]]) -> dict[str, Any]:
        """The answer of one turn."""
        turn = list(tracker.events)
        last = max(index for index, event in enumerate(turn) if isinstance(event, UserUttered))
        intent = turn[last].intent
        return {
            "replies": [text for reply in replies if (text := words(reply))],
            "intent": intent.get("name"),
            "confidence": float(intent.get("confidence") or 0.0),
            "slots": {name: value for name, value in tracker.current_slot_values().items() if value is not None and name not in INTERNAL},
            "handover": any(isinstance(event, ActionExecuted) and event.action_name == HANDOVER for event in turn[last:]),
            "language": language(tracker),
        }

    async def shorten(self, tracker: DialogueStateTracker) -> None:
        """Begin a new session after so many turns, outside a form: each turn reads all events of its session, so long ones grow slow. Slots stay."""
        turns = 0
        for event in reversed(tracker.events):
            if isinstance(event, SessionStarted):
                break
            turns += isinstance(event, UserUttered)
        if turns >= self.session_turns and not tracker.active_loop:
            await self.agent.handle_message(UserMessage("/session_start", sender_id=tracker.sender_id))
            self.store.saved.pop(tracker.sender_id, None)

    async def parse(self, texts: list[str]) -> list[dict[str, Any]]:
        """Intents of texts, without a conversation: the best intent, its confidence, and whether the bot would have asked to rephrase."""
        found = []
        for text in texts:
            parsed = await self.agent.parse_message(text.strip().lstrip("/"))
            ranking = [entry for entry in parsed.get("intent_ranking", [parsed["intent"]]) if entry["name"] != "nlu_fallback"]
            best = ranking[0] if ranking else {"name": None, "confidence": 0.0}
            unsure = parsed["intent"]["name"] in (None, "nlu_fallback")
            found.append({"intent": best["name"], "confidence": float(best["confidence"]), "fallback": unsure})
        return found


def words(reply: dict[str, Any]) -> str:
    """One reply as text: its text, an image's address, the titles of its buttons."""
    parts = [reply.get("text"), reply.get("image"), *(f"- {button.get('title', '')}" for button in reply.get("buttons") or ())]
    return "\n".join(part for part in parts if part)


async def open_bot(settings: dict[str, Any]) -> Bot:
    """Load the archive, warm it up, and open the tracker store.

    ``settings``: ``archive``, ``tracker_store`` (``memory``, a SQLAlchemy or a Redis URL), ``orders``, ``demo``, ``actions`` (files or None), ``refunds``,
    ``session_turns``.
    """
    executor = action_executor(settings)
    try:
        agent = Agent.load(settings["archive"], action_endpoint=InProcessActions(executor))
    except Exception as fault:
        raise Fault("SCN-6023", reason=f"{type(fault).__name__}: {fault}") from fault
    generator = LanguageAware(agent.domain.responses)
    agent.nlg = agent.processor.nlg = generator
    # The first message costs seconds of graph building: spent here, in memory, not by the first user.
    await agent.handle_message(UserMessage("你好", sender_id="warm-up", metadata={"language": "zh"}))
    store = Remembering(tracker_store(settings["tracker_store"], agent.domain))
    agent.tracker_store = agent.processor.tracker_store = store
    return Bot(agent, store, settings["session_turns"])


def action_executor(settings: dict[str, Any]) -> ActionExecutor:
    """The shipped actions, and the user's own in their place where the names are equal."""
    import actions

    try:
        actions.read_orders(Path(settings["orders"]))
    except (OSError, KeyError, UnicodeDecodeError) as fault:
        reason = "it needs the columns order_id and status" if isinstance(fault, KeyError) else str(fault)
        raise Fault("SCN-6026", path=settings["orders"], reason=reason) from fault
    actions.SETTINGS.update(demo=settings["demo"], refunds=settings["refunds"])
    executor = ActionExecutor()
    for cls in (actions.ActionLookupOrder, actions.ActionRequestRefund, actions.ActionHandover):
        executor.register_action(cls)
    if settings["actions"]:
        own = own_actions(Path(settings["actions"]))
        for cls in own:
            executor.register_action(cls)
    return executor


def own_actions(path: Path) -> list[type]:
    """The action classes of a user's file, or of ``__init__.py`` of a folder."""
    from rasa_sdk import Action

    file = path / "__init__.py" if path.is_dir() else path
    spec = importlib.util.spec_from_file_location("own_actions", file)
    try:
        if spec is None or spec.loader is None:
            raise ImportError("it is not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as fault:
        raise Fault("SCN-6026", path=str(file), reason=f"{type(fault).__name__}: {fault}") from fault
    return [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Action) and value.__module__ == "own_actions"]


def tracker_store(url: str, domain: Domain) -> TrackerStore:
    """Open the store of conversations.

    Raises:
        Fault: SCN-6025, the store cannot be reached. (Rasa itself would try for ever, or go on in memory.)
    """
    if url == MEMORY:
        return InMemoryTrackerStore(domain)
    parts = urlsplit(url)
    # The password must not stand in an error.
    shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
    try:
        if parts.scheme in ("redis", "rediss"):
            database = int(parts.path.strip("/") or 0)
            password = unquote(parts.password) if parts.password else None
            redis = RedisTrackerStore(domain, parts.hostname, parts.port or 6379, database, parts.username, password, use_ssl=parts.scheme == "rediss")
            redis.red.ping()
            return redis
        sqlalchemy.create_engine(url).connect().close()
    except Exception as fault:
        raise Fault("SCN-6025", url=shown, reason=type(fault).__name__) from fault
    if parts.scheme != "sqlite":
        return SQLTrackerStore(domain, host=url)
    store = SQLTrackerStore(domain, dialect="sqlite", db=sqlalchemy.engine.url.make_url(url).database)

    def tune(connection: Any, _: Any) -> None:
        # Write-ahead log: readers do not wait for writers, and a turn costs no fsync; a power cut may lose the last turns, never the file.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA busy_timeout=5000")

    sqlalchemy.event.listen(store.engine, "connect", tune)
    store.engine.dispose()
    return store
