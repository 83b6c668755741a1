"""From the scenario's answers, whole or in parts, to the objects of the OpenAI API."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scenarium.gateway.openai.asking import Asked
    from scenarium.gateway.openai.models import Form

KINDS = {"chat": ("chatcmpl-", "chat.completion", "chat.completion.chunk"), "completions": ("cmpl-", "text_completion", "text_completion")}
"""Prefix of the id; names of a whole answer and of a chunk."""


class Answer:
    """One answer in the making; ``ident`` is the request's id."""

    def __init__(self, form: Form, model: str, ident: str, asked: Asked) -> None:
        self.form, self.model, self.asked = form, model, asked
        self.usages: list[dict[str, int]] = [{} for _ in asked.bodies]
        prefix, self.whole_kind, self.chunk_kind = KINDS.get(form, ("", "", ""))
        self.head = {"id": prefix + ident, "created": int(time.time()), "model": model}

    def usage(self) -> dict[str, int]:
        """Tokens of all choices: a prompt counts once, whatever the number of its choices."""
        prompt = sum(usage.get("prompt_tokens", 0) for usage in self.usages[:: self.asked.each])
        made = sum(usage.get("completion_tokens", 0) for usage in self.usages)
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}

    def whole(self, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The object for all answers of the scenario."""
        self.usages = [answer["usage"] for answer in answers]
        if self.form == "embeddings":
            data = [{"object": "embedding", "index": at, "embedding": self._vector(answer["embedding"])} for at, answer in enumerate(answers)]
            prompt = self.usage()["prompt_tokens"]
            return {"object": "list", "data": data, "model": self.model, "usage": {"prompt_tokens": prompt, "total_tokens": prompt}}
        choices = [self._choice(at, answer["text"], answer["finish_reason"]) for at, answer in enumerate(answers)]
        return {**self.head, "object": self.whole_kind, "choices": choices, "usage": self.usage()}

    def chunks(self, index: int, part: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks for one part of choice ``index``."""
        if part.get("text"):
            yield self._chunk(index, {"content": part["text"]}, part["text"])
        if "finish_reason" in part:
            self.usages[index] = part["usage"]
            yield self._chunk(index, {}, "", part["finish_reason"])

    def first(self) -> Iterator[dict[str, Any]]:
        """What a chat begins with: who speaks."""
        for index in range(len(self.asked.bodies) if self.form == "chat" else 0):
            yield self._chunk(index, {"role": "assistant", "content": ""}, "")

    def last(self) -> Iterator[dict[str, Any]]:
        """The usage, where it is asked for."""
        if self.asked.include_usage:
            yield {**self.head, "object": self.chunk_kind, "choices": [], "usage": self.usage()}

    def _choice(self, index: int, text: str, reason: str) -> dict[str, Any]:
        if self.form == "chat":
            said = {"role": "assistant", "content": text, "refusal": None}
            return {"index": index, "message": said, "logprobs": None, "finish_reason": reason}
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}

    def _chunk(self, index: int, delta: dict[str, str], text: str, reason: str | None = None) -> dict[str, Any]:
        said = {"delta": delta} if self.form == "chat" else {"text": text}
        choice = {"index": index, **said, "logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if self.asked.include_usage else {}
        return {**self.head, "object": self.chunk_kind, "choices": [choice], **usage}

    def _vector(self, values: list[float]) -> list[float] | str:
        if not self.asked.base64:
            return values
        return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
