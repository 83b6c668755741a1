"""Ready-to-paste client code for one scenario, from its own sample: ``scenarium snippet``.

A scenario is asked in one of four ways (``predict``, ``stream``, ``v2``, ``openai``). What is asked is a ``Call``, which each language then
writes down in its own manner. A key is never written: every text takes it from ``SCENARIUM_API_KEY``.
"""

from __future__ import annotations

import base64
import json
import shlex
import textwrap
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

from scenarium.core.errors import ScenariumError
from scenarium.gateway.openai import models

Way = Literal["predict", "stream", "v2", "openai"]
Language = Literal["curl", "python", "httpx", "javascript"]
LANGUAGES: tuple[Language, ...] = ("curl", "python", "httpx", "javascript")
MAGIC = {b"\x89PNG": ("png", "image/png"), b"\xff\xd8\xff": ("jpg", "image/jpeg"), b"GIF8": ("gif", "image/gif"), b"RIFF": ("webp", "image/webp")}
WIDTH = 110
BYTES = ("base64url", "base64", "binary")
"""What a schema calls a field of bytes."""
OPENAI_ROUTES: dict[str, tuple[str, str]] = {
    "chat": ("/v1/chat/completions", "chat.completions"),
    "completions": ("/v1/completions", "completions"),
    "embeddings": ("/v1/embeddings", "embeddings"),
}
"""Route and attribute of the client of each form."""


class Subject(NamedTuple):
    """A scenario as a caller must know it."""

    name: str
    request_schema: Mapping[str, Any]
    response_schema: Mapping[str, Any]
    sample: Mapping[str, Any]
    streams: bool
    url: str
    """Where the gateway is."""
    keyed: bool
    """Whether it asks for a key."""


class File(NamedTuple):
    """The file that a request uploads."""

    field: str
    name: str
    kind: str


class Call(NamedTuple):
    """What is asked."""

    subject: Subject
    way: Way
    path: str
    body: Mapping[str, Any]
    """The fields of the body; that of the file is left out."""
    file: File | None
    parts: bool
    """Whether the answer comes in parts."""
    method: str = ""
    """OpenAI: the client's method."""

    @property
    def url(self) -> str:
        """Where it goes."""
        return self.subject.url + self.path


def snippet(subject: Subject, language: Language, way: Way, parts: bool = False) -> str:
    """The text. ``parts``: of the OpenAI API, the answer as it comes.

    Raises:
        ScenariumError: SCN-4005 (it does not stream), SCN-4303 (it does not speak the OpenAI API).
    """
    writers = {"curl": _curl, "python": _python, "httpx": _httpx, "javascript": _javascript}
    return writers[language](_call(subject, way, parts)) + "\n"


def _call(subject: Subject, way: Way, parts: bool) -> Call:
    if (way == "stream" or parts) and not subject.streams:
        raise ScenariumError("SCN-4005", name=subject.name)
    if way == "openai":
        return _openai(subject, parts)
    file = _file(subject)
    body = {field: value for field, value in subject.sample.items() if file is None or field != file.field}
    path = f"/v2/models/{subject.name}.predict/infer" if way == "v2" else f"/scenarios/{subject.name}/{way}"
    return Call(subject, way, path, body, file, way == "stream")


def _file(subject: Subject) -> File | None:
    """The first field of bytes, where the sample fills it."""
    for field, info in subject.request_schema.get("properties", {}).items():
        if subject.sample.get(field) and any(each.get("format") in BYTES for each in (info, *info.get("anyOf", ()))):
            content = base64.urlsafe_b64decode(subject.sample[field].replace("+", "-").replace("/", "_"))
            suffix, kind = next((found for start, found in MAGIC.items() if content.startswith(start)), ("bin", "application/octet-stream"))
            return File(field, f"{field}.{suffix}", kind)
    return None


def _openai(subject: Subject, parts: bool) -> Call:
    forms = models.forms(cast(Any, subject))  # which has the two schemas that are looked at
    form = next((form for form in models.FORMS if form in forms and models.FORMS[form][0] in subject.sample), next(iter(sorted(forms)), None))
    if form is None:
        raise ScenariumError("SCN-4303", field="model", name=subject.name, form="/v1", forms="/scenarios, /v2")
    sample, field = subject.sample, models.FORMS[form][0]
    content = sample.get("prompt") or sample.get("input") or "Hello"
    default = [{"role": "user", "content": content}] if form == "chat" else content
    body: dict[str, Any] = {"model": subject.name, field: sample.get(field, default)}
    if form != "embeddings":
        body |= {known: sample[own] for own, known in (("max_new_tokens", "max_tokens"), ("temperature", "temperature")) if own in sample}
        body |= {"stream": True} if parts else {}
    path, method = OPENAI_ROUTES[form]
    return Call(subject, "openai", path, body, None, parts and form != "embeddings", method)


# ── curl ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


_PLACE = "<the file>"
"""Where the file's base64 comes into the JSON."""


def _curl(call: Call) -> str:
    lines = [f"curl {'-N ' if call.parts else ''}{call.url}"]
    if call.subject.keyed:
        lines.append('-H "Authorization: Bearer $SCENARIUM_API_KEY"')
    if call.way == "v2" and call.file:
        before, after = _v2(json.dumps({call.file.field: _PLACE, **call.body}, ensure_ascii=False)).split(_PLACE)
        printed = shlex.quote("%s".join(part.replace("\\", "\\\\").replace("%", "%%") for part in (before, after)))
        made = f"printf {printed} \"$(base64 < {call.file.name} | tr -d '\\n')\" |\n"
        return made + " \\\n  ".join([*lines, '-H "Content-Type: application/json"', "--data-binary @-"])
    if call.file and call.body:
        lines += [f"-F {shlex.quote(f'{field}={_form(value)}')}" for field, value in call.body.items()]
        lines.append(f"-F {call.file.field}=@{call.file.name}")
    elif call.file:
        lines += [f'-H "Content-Type: {call.file.kind}"', f"--data-binary @{call.file.name}"]
    else:
        body = _v2(json.dumps(call.body, ensure_ascii=False)) if call.way == "v2" else json.dumps(call.body, ensure_ascii=False)
        lines += ['-H "Content-Type: application/json"', f"-d {shlex.quote(body)}"]
    return " \\\n  ".join(lines)


def _v2(body: str) -> str:
    """A request of KServe v2 that holds a whole request of the scenario."""
    return json.dumps({"inputs": [{"name": "REQUEST", "shape": [1], "datatype": "BYTES", "data": [body]}]}, ensure_ascii=False)


def _form(value: Any) -> str:
    """A field of a form."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# ── Python ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _literal(value: Any, indent: int = 0, before: int = 0) -> str:
    """A value as Python writes it; on several lines where one would be too long, of which ``before`` characters are taken."""
    if not isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    if isinstance(value, dict):
        keys = [f"{_literal(key)}: " for key in value]
        parts, ends = [key + _literal(each, indent + 4, len(key)) for key, each in zip(keys, value.values(), strict=True)], "{}"
    else:
        parts, ends = [_literal(each, indent + 4) for each in value], "[]"
    line = f"{ends[0]}{', '.join(parts)}{ends[1]}"
    if indent + before + len(line) <= WIDTH or not parts:
        return line
    margin = " " * (indent + 4)
    if any(isinstance(each, (str, dict, list)) for each in (value.values() if isinstance(value, dict) else value)):
        inner = margin + f",\n{margin}".join(parts)
    else:
        inner = textwrap.fill(", ".join(parts), WIDTH, initial_indent=margin, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False)
    return f"{ends[0]}\n{inner},\n{' ' * indent}{ends[1]}"


def _fields(call: Call, file: str, indent: int = 0) -> str:
    """The request as a dictionary, of which ``file`` is the expression of the file's value."""
    if call.file is None:
        return _literal(dict(call.body), indent)
    return f"{{{', '.join([f'{_literal(call.file.field)}: {file}', *(f'{_literal(field)}: {_literal(value)}' for field, value in call.body.items())])}}}"


def _python(call: Call) -> str:
    """By our own client; on /v2 by Triton's, on /v1 by OpenAI's."""
    return {"v2": _triton, "openai": _openai_client}.get(call.way, _own)(call)


def _own(call: Call) -> str:
    subject, imports = call.subject, ["from pathlib import Path", ""] if call.file else []
    path = call.file and f'Path("{call.file.name}")'
    asked = path if path and not call.body else _fields(call, path or "", 4)
    head = [*imports, "from scenarium.client import Client  # pip install scenarium", ""]
    opened = f'with Client("{subject.url}") as client:' + ("  # takes its key from SCENARIUM_API_KEY" if subject.keyed else "")
    if call.parts:
        return "\n".join([*head, opened, f'    for part in client.stream("{subject.name}", {asked}):', "        print(part)"])
    return "\n".join([*head, opened, f'    print(client.predict("{subject.name}", {asked}))'])


def _triton(call: Call) -> str:
    subject = call.subject
    scheme, _, host = subject.url.partition("://")
    standard = ["import base64", "import json", *(["import os"] if subject.keyed else []), "from pathlib import Path"]
    imports = standard if call.file else [line for line in standard if line in ("import json", "import os")]
    asked = _fields(call, f'base64.b64encode(Path("{call.file.name}").read_bytes()).decode()' if call.file else "")
    key = ', headers={"Authorization": f"Bearer {os.environ[\'SCENARIUM_API_KEY\']}"}' if subject.keyed else ""
    return "\n".join(
        [
            *imports,
            "",
            "import numpy as np",
            'import tritonclient.http as v2  # pip install "tritonclient[http]"',
            "",
            f'client = v2.InferenceServerClient("{host}"{", ssl=True" if scheme == "https" else ""})',
            f"body = json.dumps({asked})",
            'request = v2.InferInput("REQUEST", [1], "BYTES")',
            "request.set_data_from_numpy(np.array([body.encode()], dtype=object))",
            f'answer = client.infer("{subject.name}.predict", [request]{key})',
            'print(json.loads(answer.as_numpy("RESPONSE")[0]))',
        ]
    )


def _openai_client(call: Call) -> str:
    key = 'os.environ["SCENARIUM_API_KEY"]' if call.subject.keyed else '"none"'
    values = ", ".join(f"{field}={_literal(value, 4)}" for field, value in call.body.items())
    lines = [*(["import os", ""] if call.subject.keyed else []), "import openai  # pip install openai", ""]
    lines.append(f'client = openai.OpenAI(base_url="{call.subject.url}/v1", api_key={key})')
    asked = f"client.{call.method}.create({values})"
    lines += [f"for part in {asked}:", "    print(part.to_json(indent=None))"] if call.parts else [f"print({asked}.to_json())"]
    return "\n".join(lines)


def _httpx(call: Call) -> str:
    """Without a client of the protocol."""
    subject = call.subject
    standard = [
        *(["import base64"] if call.way == "v2" and call.file else []),
        *(["import json"] if call.way == "v2" else []),
        *(["import os"] if subject.keyed else []),
        *(["from pathlib import Path"] if call.file else []),
    ]
    lines = [*standard, *([""] if standard else []), "import httpx  # pip install httpx", ""]
    headers = ['"Authorization": f"Bearer {os.environ[\'SCENARIUM_API_KEY\']}"'] if subject.keyed else []
    read = call.file and f'Path("{call.file.name}").read_bytes()'
    if call.way == "v2":
        asked = _fields(call, f"base64.b64encode({read}).decode()" if call.file else "")
        lines += [f"body = json.dumps({asked})", 'request = {"inputs": [{"name": "REQUEST", "shape": [1], "datatype": "BYTES", "data": [body]}]}']
        body = "json=request"
    elif call.file and call.body:
        body = f'files={{"{call.file.field}": {read}}}, data={_literal({field: _form(value) for field, value in call.body.items()})}'
    elif call.file:
        headers.append(f'"Content-Type": "{call.file.kind}"')
        body = f"content={read}"
    else:
        body = f"json={_literal(dict(call.body))}"
    given = f", headers={{{', '.join(headers)}}}" if headers else ""
    if call.parts:
        lines += [
            f'with httpx.stream("POST", "{call.url}", {body}{given}, timeout=60) as response:',
            "    response.raise_for_status()",
            "    for line in response.iter_lines():",
            '        if line.startswith("data: "):',
            "            print(line[6:])",
        ]
    else:
        shown = 'response.json()["outputs"][0]["data"][0]' if call.way == "v2" else "response.json()"
        lines += [f'response = httpx.post("{call.url}", {body}{given}, timeout=60)', "response.raise_for_status()", f"print({shown})"]
    return "\n".join(lines)


# ── JavaScript ────────────────────────────────────────────────────────────────────────────────────────────────────────

_PARTS = """const decoder = new TextDecoder();
let rest = "";
for await (const chunk of response.body) {
  const lines = (rest + decoder.decode(chunk, { stream: true })).split("\\n");
  rest = lines.pop();
  for (const line of lines) if (line.startsWith("data: ")) console.log(line.slice(6));
}"""


def _javascript(call: Call) -> str:
    """A module for Node.js 18 and later; without a file, for a browser too."""
    lines, headers = ["// node 18 or later, as a module: node ask.mjs"], []
    if call.subject.keyed:
        headers.append("Authorization: `Bearer ${process.env.SCENARIUM_API_KEY}`")
    values = json.dumps(call.body, ensure_ascii=False)
    if call.file:
        lines += ['import { readFile } from "node:fs/promises";', "", f'const file = await readFile("{call.file.name}");']
    if call.way == "v2":
        inner = f'{{ {call.file.field}: file.toString("base64"), ...{values} }}' if call.file else values
        lines.append(f'const input = {{ name: "REQUEST", shape: [1], datatype: "BYTES", data: [JSON.stringify({inner})] }};')
        body = "JSON.stringify({ inputs: [input] })"
    elif call.file and call.body:
        lines += ["const form = new FormData();", f'form.append("{call.file.field}", new Blob([file]), "{call.file.name}");']
        lines += [f"form.append({json.dumps(field)}, {json.dumps(_form(value), ensure_ascii=False)});" for field, value in call.body.items()]
        body = "form"
    else:
        body = "file" if call.file else f"JSON.stringify({values})"
    if body != "form":
        headers.insert(0, f'"Content-Type": "{call.file.kind if body == "file" and call.file else "application/json"}"')
    given = [f"  headers: {{ {', '.join(headers)} }},"] if headers else []
    lines += [f'const response = await fetch("{call.url}", {{', '  method: "POST",', *given, f"  body: {body},", "});"]
    lines.append("if (!response.ok) throw new Error(await response.text());")
    lines.append(_PARTS if call.parts else "console.log(JSON.stringify(await response.json(), null, 1));")
    return "\n".join(lines)
