"""``scenarium predict``: one request, requests from a pipe, or a conversation in the terminal."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scenarium.core.cli import base
from scenarium.core.errors import ScenariumError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from scenarium.core.handle import Handle

SPOKEN = ("text", "message", "messages", "prompt", "reply", "replies", "answer", "content", "delta", "token")
"""Fields of an answer that are words to be read, in the order in which one is looked for."""


@base.command(
    "predict",
    en="Answer requests by a stored version, without a server: one given as JSON, as FIELD=VALUE (@FILE: the file's content) or as @FILE alone; or "
    "from stdin, one JSON object a line. -i talks in the terminal.",
    zh="无需服务器，用已保存的版本回答请求：可为 JSON、字段=值（@文件 表示其内容）或单独的 @文件；或从标准输入读取，每行一个 JSON 对象。-i 进入对话。",
    examples=(
        'scenarium predict fraud_text \'{"text": "You have won a prize"}\'',
        "scenarium predict fraud_text text='恭喜您中奖了' --version latest",
        "scenarium predict image_classification @photo.jpg",
        "cat requests.jsonl | scenarium predict fraud_text > answers.jsonl",
        "scenarium predict chatbot -i",
    ),
)
@base.scenario_argument()
@click.argument("request", nargs=-1)
@base.version_option
@base.option("-i", "--interactive", is_flag=True, en="Ask again and again in the terminal; an empty line ends.", zh="在终端中反复提问；空行结束。")
@base.option("--stream", is_flag=True, en="Print the parts of the answer as they come.", zh="逐段输出回答。")
@base.set_option
def predict(name: str, request: tuple[str, ...], ref: str, interactive: bool, stream: bool, sets: tuple[str, ...]) -> int:
    """Load the version once, answer everything that is asked."""
    scenario = base.registry(sets, name).scenario(name)
    from scenarium.core.handle import Handle

    handle = Handle(scenario, ref)
    if interactive:
        talk(handle)
        return 0
    if request:
        asked = parse(handle, request)
        if stream:
            for part in handle.stream(asked):
                click.echo(json.dumps(part, ensure_ascii=False, default=str))
        else:
            base.print_json(handle.predict(asked))
        return 0
    body = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
    if not body.strip():
        sample = f"scenarium predict {name} '{json.dumps(handle.version.manifest.sample, ensure_ascii=False):.200}'"
        raise click.UsageError(base.say(f"give a request, for example: {sample}", f"请给出请求，例如：{sample}"))
    return _pipe(handle, body)


def parse(handle: Handle, words: Sequence[str]) -> BaseModel:
    """One request given on the command line.

    Raises:
        ScenariumError: SCN-4001 and SCN-4002 as a client of the gateway would be told; SCN-4020: a file cannot be read.
    """
    first = words[0]
    if len(words) == 1 and (first.startswith("@") or first.lstrip().startswith(("{", "["))):
        body = _file(first[1:]) if first.startswith("@") else first.encode()
        return handle.runtime.decode(body, _kind(body))
    values: dict[str, Any] = {}
    for word in words:
        field, equals, value = word.partition("=")
        if not equals:
            raise click.UsageError(base.say(f"{word!r} is neither JSON nor FIELD=VALUE nor @FILE", f"{word!r} 不是 JSON、字段=值 或 @文件"))
        values[field] = _file(value[1:]) if value.startswith("@") else value
    return validate(handle.runtime.schema.request, values)


def validate(cls: type[BaseModel], values: Mapping[str, Any]) -> BaseModel:
    """Values given as text: as they are where the field takes text, read as JSON where it does not (``k=5``, ``tags=["a"]``)."""
    from pydantic import ValidationError

    from scenarium.core.bodies import validate as strict

    read = dict(values)
    try:
        return cls.model_validate(read)
    except ValidationError as fault:
        for error in fault.errors(include_url=False):
            field = error["loc"][0] if error["loc"] else None
            if isinstance(value := read.get(str(field)), str):
                try:
                    read[str(field)] = json.loads(value)
                except ValueError:
                    continue
            elif isinstance(value, bytes):  # a text field given as a file
                read[str(field)] = value.decode("utf8", "replace")
    return strict(cls, read)


def _kind(body: bytes) -> str:
    return "application/json" if body.lstrip()[:1] in (b"{", b"[") else "application/octet-stream"


def _file(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as fault:
        raise ScenariumError("SCN-4020", file=path, reason=fault.strerror or str(fault)) from None


def _pipe(handle: Handle, body: bytes) -> int:
    """The whole of stdin as one request where it is one; else a request a line, answers and errors a line each, in order."""
    text = body.strip()
    try:
        whole = bool(text) and (not text.startswith(b"{") or isinstance(json.loads(text), dict))
    except ValueError:
        whole = False
    if whole:
        base.print_json(handle.predict(handle.runtime.decode(body, _kind(text))))
        return 0
    failed = False
    for line in filter(None, (line.strip() for line in text.splitlines())):
        try:
            answer: dict[str, Any] = handle.predict(handle.runtime.decode(line))
        except ScenariumError as fault:
            failed = True
            answer = {"error": fault.problem()}
        click.echo(json.dumps(answer, ensure_ascii=False))
    return base.EXIT_FAILED if failed else 0


def talk(handle: Handle) -> None:
    """A conversation: a line becomes the request's text field (else it is JSON or FIELD=VALUE); one session for the whole of it."""
    cls = handle.runtime.schema.request
    field = _text_field(cls)
    session = _session(handle)
    hint = base.say("an empty line ends", "空行结束")
    asks = field or base.say("JSON or FIELD=VALUE", "JSON 或 字段=值")
    base.note(f"{handle.scenario.name} {handle.version.number} – {asks}; {hint}", f"{handle.scenario.name} {handle.version.number}——{asks}；{hint}")
    for line in _lines():
        try:
            if line.lstrip().startswith("{"):
                values: dict[str, Any] = json.loads(line)
            elif field and not line.startswith(tuple(f"{name}=" for name in cls.model_fields)):
                values = {field: line}
            else:
                values = dict(zip(("field", "value"), line.split("=", 1), strict=False))
                values = {values["field"]: values.get("value", "")}
            _answer(handle, validate(cls, {**session, **values}))
        except ValueError as fault:
            click.secho(str(fault), fg="red", err=True)
        except ScenariumError as fault:
            base.print_error(fault)


def _lines() -> Iterator[str]:
    terminal = sys.stdin.isatty()
    if terminal:
        import contextlib

        with contextlib.suppress(ImportError):  # line editing and history, where the platform has them
            import readline  # noqa: F401
    while True:
        try:
            line = input("> " if terminal else "")
        except EOFError:
            return
        if not line.strip():
            return
        yield line


def _text_field(cls: type[BaseModel]) -> str | None:
    """The field that a typed line fills: the only required text, else one of the usual names."""
    texts = [name for name, info in cls.model_fields.items() if info.annotation is str or str in getattr(info.annotation, "__args__", ())]
    required = [name for name in texts if cls.model_fields[name].is_required() and name in texts]
    named = [name for name in SPOKEN if name in texts]
    return named[0] if named else required[0] if len(required) == 1 else None


def _session(handle: Handle) -> dict[str, Any]:
    """The routing key of the conversation, where the scenario names one at the top of its request."""
    pointer = handle.runtime.traits.route_key or ""
    name = pointer.removeprefix("/")
    return {name: f"terminal-{uuid.uuid4().hex[:12]}"} if name in handle.runtime.schema.request.model_fields else {}


def _answer(handle: Handle, request: BaseModel) -> None:
    if handle.runtime.traits.streams:
        for part in handle.stream(request):
            words = spoken(part)
            click.echo(words if words is not None else json.dumps(part, ensure_ascii=False, default=str), nl=words is None)
        click.echo()
        return
    answer = handle.predict(request)
    words = spoken(answer)
    click.echo(words if words is not None else json.dumps(answer, ensure_ascii=False, indent=1))


def spoken(answer: Any) -> str | None:
    """The words of an answer that is meant to be read: a text, or one of the usual fields of it; None where it is data."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, list):
        parts = [spoken(part) for part in answer]
        return "\n".join(part for part in parts if part is not None) if parts and None not in parts else None
    if isinstance(answer, dict):
        return next((words for name in SPOKEN if name in answer and (words := spoken(answer[name])) is not None), None)
    return None
