"""Keeps what a Triton has loaded in line with its model repository, as its own polling would; that mode, though, takes no orders to load a model again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx

from scenarium.core.errors import ScenariumError
from scenarium.core.importing.triton_entry import CONFIG
from scenarium.core.triton import entries

Tell = Callable[[str, str, str], None]
"""Model, what became of it (``loaded``, ``unloaded``, ``refused``, ``completed``) and more about it."""


class Follower:
    """``look`` loads what is new or changed, and unloads what is gone."""

    def __init__(self, http: str, models: Path, environment: Path, tell: Tell) -> None:
        self.models = models
        self.environment = environment
        self.tell = tell
        self._client = httpx.Client(base_url=f"http://{http}", timeout=600, trust_env=False)
        self._known: dict[str, str] = {}

    def look(self) -> None:
        """One look. A model that Triton refuses is told once, and tried again when its configuration changes."""
        there = {}
        for name in entries.names(self.models):
            try:
                there[name] = (self.models / name / CONFIG).read_text(encoding="utf8")
            except (OSError, UnicodeDecodeError):  # it goes at this moment, or is no text
                continue
        for name, text in there.items():
            if self._known.get(name) != text:
                self._known[name] = text
                self._load(name)
        for name in [name for name in self._known if name not in there]:
            del self._known[name]
            self._order(name, "unload", {})

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def _load(self, name: str) -> None:
        try:
            entry = entries.read(self.models / name, self.environment)
        except ScenariumError as fault:
            self.tell(name, "refused", str(fault))
            return
        parameters = {}
        if entry.added:
            from google.protobuf.json_format import MessageToJson

            self.tell(name, "completed", entry.added)
            parameters = {"config": json.dumps(json.loads(MessageToJson(entry.config, preserving_proto_field_name=True)))}
        self._order(name, "load", {"parameters": parameters} if parameters else {})

    def _order(self, name: str, what: str, body: dict[str, object]) -> None:
        answer = self._client.post(f"/v2/repository/models/{name}/{what}", json=body)
        if answer.status_code == 200:
            self.tell(name, f"{what}ed", "")
        else:
            self.tell(name, "refused", answer.json().get("error", answer.text))
