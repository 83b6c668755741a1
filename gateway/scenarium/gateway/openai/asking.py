"""From a request of the OpenAI API to the scenario's own requests.

Fields that the scenario has under the same name go on as they are, those of the API and others alike (``top_k``). What is left out is as
the scenario has it. A field that neither knows is an error, since an answer that leaves it out of account would be wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from scenarium.core.errors import ScenariumError
from scenarium.gateway.openai import models
from scenarium.gateway.openai.refusals import to_json

if TYPE_CHECKING:
    from scenarium.core.manifest import Manifest
    from scenarium.gateway.openai.models import Form

MOST_CHOICES, MOST_INPUTS = 16, 64
"""Answers of one request: texts, and embeddings."""
LIMIT = "max_new_tokens"
"""The scenario's field for the most tokens."""
LIMITS = ("max_completion_tokens", "max_tokens")
OWN = frozenset(("model", "stream", "stream_options", "n", "stop", "prompt", "messages", "input", "encoding_format", "logprobs", "top_logprobs", *LIMITS))
"""Fields that are read here."""
NOTES = frozenset(("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"))
"""Fields that do not concern the answer."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
    "echo": (False,),
    "best_of": (1,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Values that ask for nothing."""
KINDS: dict[str, tuple[tuple[type, ...], str, str]] = {
    "model": ((str,), "must be a text", "应为文本"),
    "stream": ((bool,), "must be true or false", "应为 true 或 false"),
    "stream_options": ((dict,), "must be an object", "应为对象"),
    "n": ((int,), "must be a whole number", "应为整数"),
    "temperature": ((int, float), "must be a number", "应为数字"),
    "top_p": ((int, float), "must be a number", "应为数字"),
    "seed": ((int,), "must be a whole number", "应为整数"),
    "dimensions": ((int,), "must be a whole number", "应为整数"),
} | dict.fromkeys(LIMITS, ((int,), "must be a whole number", "应为整数"))
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""The API's roles to the scenario's."""
SILENT = frozenset(("role", "content", "name"))
"""Members of a message; others must be empty."""


class Asked(NamedTuple):
    """What a client asks for."""

    bodies: list[bytes]
    """The scenario's requests, those of one prompt beside each other."""
    each: int
    """Choices for each prompt."""
    stream: bool
    include_usage: bool
    base64: bool
    """Embeddings: as base64 of little-endian float32 rather than as numbers."""
    names: Mapping[str, str]
    """The scenario's fields to those that the client used."""


def wrong(field: str, english: str, chinese: str) -> NoReturn:
    """Refuse a field."""
    raise ScenariumError("SCN-4301", field=field, reason_en=english, reason_zh=chinese)


def parse(body: bytes) -> dict[str, Any]:
    """The request's fields; those that are null are left out, and ``model`` is there.

    Raises:
        ScenariumError: SCN-4002 (no JSON), SCN-4301 (a field).
    """
    try:
        found = json.loads(body, parse_constant=lambda name: _no_number(name))
    except (ValueError, RecursionError) as fault:
        raise ScenariumError("SCN-4002", reason=str(fault), sample='{"model": …}') from None
    if not isinstance(found, dict):
        raise ScenariumError("SCN-4002", reason="it is no object", sample='{"model": …}')
    found = {name: value for name, value in found.items() if value is not None}
    for name, (kinds, english, chinese) in KINDS.items():
        # bool is an int to Python, and not to the API
        if name in found and (type(found[name]) not in kinds):
            wrong(name, english, chinese)
    if "model" not in found:
        wrong("model", "is missing", "缺失")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def read(asked: dict[str, Any], form: Form, manifest: Manifest) -> Asked:
    """What the fields mean to a scenario.

    Raises:
        ScenariumError: SCN-4301 (a field is wrong, or not supported).
    """
    known = models.fields(manifest)
    field = models.FORMS[form][0]
    names: dict[str, str] = {}
    shared = {name: value for name, value in asked.items() if name not in OWN and name in known}
    for name in LIMITS:
        if name in asked and LIMIT in known and form != "embeddings":
            shared[LIMIT], names[LIMIT] = asked[name], name
            break
    if "stop" in asked and "stop" in known:
        shared["stop"] = _texts(asked["stop"], "stop")
    if "logprobs" in known and form != "embeddings" and (wanted := _logprobs(asked, form)) is not None:
        shared["logprobs"], names["logprobs"] = wanted, "top_logprobs" if form == "chat" else "logprobs"
    _supported(asked, field, form, known, manifest.scenario)
    if field not in asked:
        wrong(field, "is missing", "缺失")
    each, most = asked.get("n", 1), MOST_INPUTS if form == "embeddings" else MOST_CHOICES
    inputs: list[Any] = [messages(asked[field])] if form == "chat" else _texts(asked[field], field)
    if not 1 <= each <= MOST_CHOICES:
        wrong("n", f"must be from 1 to {MOST_CHOICES}", f"应为 1 到 {MOST_CHOICES}")
    if not 1 <= len(inputs) * each <= most:
        wrong(field, f"must be from 1 to {most // each} texts", f"应为 1 到 {most // each} 条文本")
    bodies = [body({**shared, **_seeded(shared, number), field: value}, form) for value in inputs for number in range(each)]
    stream = asked.get("stream", False)
    options = asked.get("stream_options", {})
    if options and not stream:
        wrong("stream_options", "is allowed only with stream", "只能与 stream 一起使用")
    usage = options.get("include_usage", False)
    if type(usage) is not bool:
        wrong("stream_options.include_usage", "must be true or false", "应为 true 或 false")
    encoding = asked.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        wrong("encoding_format", "must be float or base64", "应为 float 或 base64")
    return Asked(bodies, each, stream, usage, encoding == "base64", names)


def body(fields: Mapping[str, Any], form: Form) -> bytes:
    """A request's fields as JSON.

    Raises:
        ScenariumError: SCN-4301 (a text cannot be sent).
    """
    try:
        return to_json(fields)
    except UnicodeEncodeError:
        wrong(models.FORMS[form][0], "or another text has half of a surrogate pair", "或其他文本含有不成对的代理字符")


def _supported(asked: Mapping[str, Any], field: str, form: Form, known: frozenset[str], scenario: str) -> None:
    """Refuse what nobody would take into account."""
    others = {"encoding_format"} if form == "embeddings" else {"stream", "stream_options", "n"}
    if form != "embeddings":
        others |= {*LIMITS} if LIMIT in known else set()
        others |= {"stop"} & known
        others |= {"logprobs", "top_logprobs"} if "logprobs" in known and form == "chat" else {"logprobs"} & known
    allowed = others | {"model", field} | NOTES | (known - {each for each, _ in models.FORMS.values()})
    for name, value in asked.items():
        if name in allowed or any(type(value) is type(nothing) and value == nothing for nothing in NEUTRAL.get(name, ())):
            continue
        wrong(name, f"is not supported by model {scenario!r}", f"不受模型 {scenario!r} 支持")


def _logprobs(asked: Mapping[str, Any], form: Form) -> int | None:
    """How many of the most likely tokens are told beside each; None: no log probabilities. A chat has a switch and a number, a completion the number."""
    wanted, top = asked.get("logprobs"), asked.get("top_logprobs")
    if form == "completions":
        if type(wanted) not in (int, type(None)):
            wrong("logprobs", "must be a whole number", "应为整数")
        return wanted
    if type(wanted) not in (bool, type(None)):
        wrong("logprobs", "must be true or false", "应为 true 或 false")
    if type(top) not in (int, type(None)):
        wrong("top_logprobs", "must be a whole number", "应为整数")
    if top is not None and not wanted:
        wrong("top_logprobs", "is allowed only with logprobs", "只能与 logprobs 一起使用")
    return (top or 0) if wanted else None


def _seeded(shared: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The seed of one choice: a seed that all had would give all the same text."""
    return {"seed": shared["seed"] + number} if number and "seed" in shared else {}


def _texts(value: Any, field: str) -> list[str]:
    """One text, or several."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        wrong(field, "must be a text or a list of texts", "应为文本或文本列表")
    return found


def messages(value: Any) -> list[dict[str, str]]:
    """The conversation as the scenario takes it.

    Raises:
        ScenariumError: SCN-4301 (names the message).
    """
    if not isinstance(value, list) or not value:
        wrong("messages", "must be a list with at least one message", "应为至少含一条消息的列表")
    found = []
    for number, message in enumerate(value):
        at = f"messages.{number}"
        if not isinstance(message, dict):
            wrong(at, "must be an object", "应为对象")
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            wrong(f"{at}.role", f"must be one of {', '.join(ROLES)}", f"应为以下之一：{', '.join(ROLES)}")
        for name, member in message.items():
            if name not in SILENT and member:
                wrong(f"{at}.{name}", "is not supported", "不受支持")
        found.append({"role": ROLES[role], "content": _content(message.get("content"), f"{at}.content")})
    return found


def _content(value: Any, at: str) -> str:
    """The text of a message, which may come in parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        wrong(at, "must be a text or a list of parts", "应为文本或内容片段列表")
    for number, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            wrong(f"{at}.{number}", "must be a part of type text", "应为 text 类型的内容片段")
    return "".join(part["text"] for part in value)
