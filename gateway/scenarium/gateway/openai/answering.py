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
        self.said = [0] * len(asked.bodies)
        """Characters of the tokens of each choice whose log probabilities were told."""
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
        choices = [self._choice(at, answer["text"], answer["finish_reason"], answer.get("logprobs")) for at, answer in enumerate(answers)]
        return {**self.head, "object": self.whole_kind, "choices": choices, "usage": self.usage()}

    def chunks(self, index: int, part: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks for one part of choice ``index``."""
        if part.get("text") or part.get("logprobs"):
            yield self._chunk(index, {"content": part["text"]}, part["text"], logprobs=part.get("logprobs"))
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

    def _choice(self, index: int, text: str, reason: str, logprobs: list[dict[str, Any]] | None) -> dict[str, Any]:
        if self.form == "chat":
            said = {"role": "assistant", "content": text, "refusal": None}
            return {"index": index, "message": said, "logprobs": self._logprobs(index, logprobs), "finish_reason": reason}
        return {"index": index, "text": text, "logprobs": self._logprobs(index, logprobs), "finish_reason": reason}

    def _logprobs(self, index: int, told: list[dict[str, Any]] | None) -> dict[str, Any] | None:
        """The API's form of a scenario's log probabilities."""
        if told is None:
            return None
        if self.form == "chat":
            return {"content": [{**_shown(each), "top_logprobs": [_shown(other) for other in each["top"]]} for each in told], "refusal": None}
        offsets = []
        for each in told:
            offsets.append(self.said[index])
            self.said[index] += len(each["token"])
        tops = [{other["token"]: other["logprob"] for other in each["top"]} for each in told]
        return {
            "tokens": [each["token"] for each in told],
            "token_logprobs": [each["logprob"] for each in told],
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _chunk(self, index: int, delta: dict[str, str], text: str, reason: str | None = None, logprobs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        said = {"delta": delta} if self.form == "chat" else {"text": text}
        choice = {"index": index, **said, "logprobs": self._logprobs(index, logprobs), "finish_reason": reason}
        usage = {"usage": None} if self.asked.include_usage else {}
        return {**self.head, "object": self.chunk_kind, "choices": [choice], **usage}

    def _vector(self, values: list[float]) -> list[float] | str:
        if not self.asked.base64:
            return values
        return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _shown(each: dict[str, Any]) -> dict[str, Any]:
    """One token of a chat. Half of a character has no text, and so no bytes either."""
    token = each["token"]
    return {"token": token, "bytes": None if "\ufffd" in token else list(token.encode()), "logprob": each["logprob"]}
