"""One error type with a stable code, English and Chinese text, the cause and what to do.

The texts stand in ``messages/*.toml``, one file a thousand of codes, read only when an error is shown.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias, TypedDict

Language: TypeAlias = str


class Message(TypedDict):
    """One entry of the catalogue. All four texts are ``str.format`` templates over the error's values."""

    status: int
    en: str
    zh: str
    hint_en: str
    hint_zh: str


@cache
def catalogue() -> dict[str, Message]:
    """Every code with its texts and HTTP status."""
    import tomllib
    from importlib.resources import files  # a fifth of the time of `scenarium list`, needed only when an error is shown

    found: dict[str, Message] = {}
    for entry in sorted(files("scenarium.core").joinpath("messages").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".toml"):
            found.update(tomllib.loads(entry.read_text(encoding="utf8")))
    return found


def language(accept: str | None = None) -> Language:
    """``"zh"`` or ``"en"``: from an ``Accept-Language`` value if given, else ``SCENARIUM_LANG``, else the locale."""
    if accept:
        # The first of the two languages wins; quality values are rare enough that order stands for them.
        for part in accept.lower().split(","):
            tag = part.strip()[:2]
            if tag in ("zh", "en"):
                return tag
        return "en"
    chosen = os.environ.get("SCENARIUM_LANG") or os.environ.get("LC_ALL") or os.environ.get("LANG") or "en"
    return "zh" if chosen.lower().startswith("zh") else "en"


class Words(NamedTuple):
    """A value of an error that is text itself, in both languages."""

    en: str
    zh: str


class ScenariumError(Exception):
    """A fault that a person can act on.

    ``code`` names an entry of the catalogue; ``values`` fill its placeholders. ``field``, ``file`` and ``line`` say where the
    cause stands and are shown in every rendering.
    """

    def __init__(self, code: str, /, *, field: str | None = None, file: object = None, line: int | None = None, **values: Any) -> None:
        super().__init__(code)
        self.code = code
        self.field = field
        self.file = None if file is None else str(file)
        self.line = line
        self.values = values

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.code, self.field, self.file, self.line, self.values))

    @property
    def status(self) -> int:
        """The HTTP status that stands for this error."""
        return catalogue()[self.code]["status"]

    def _fill(self, key: str) -> str:
        message: Any = catalogue()[self.code]
        lang = key.rpartition("_")[2]
        values = {name: getattr(value, lang) if isinstance(value, Words) else value for name, value in self.values.items()}
        return str(message[key]).format_map({"field": self.field, "file": self.file, "line": self.line, **values})

    def title(self, lang: Language = "en") -> str:
        """What is wrong, one sentence."""
        return self._fill(lang)

    def hint(self, lang: Language = "en") -> str:
        """What to do about it."""
        return self._fill(f"hint_{lang}")

    def problem(self, lang: Language = "en") -> dict[str, Any]:
        """RFC 9457 problem details; extension members ``code``, ``hint``, ``field``, ``file``, ``line``."""
        found = {
            "type": f"urn:scenarium:error:{self.code}",
            "title": self.title(lang),
            "status": self.status,
            "code": self.code,
            "hint": self.hint(lang),
            "field": self.field,
            "file": self.file,
            "line": self.line,
        }
        return {key: value for key, value in found.items() if value is not None}

    def __str__(self) -> str:
        lang = language()
        place = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        return f"{self.code} {place}{self.title(lang)}\n  {'怎么办' if lang == 'zh' else 'What to do'}: {self.hint(lang)}"


def _rebuild(cls: type[ScenariumError], code: str, field: str | None, file: str | None, line: int | None, values: dict[str, Any]) -> ScenariumError:
    error = cls.__new__(cls)
    ScenariumError.__init__(error, code, field=field, file=file, line=line, **values)
    return error


class SeveralErrors(ScenariumError):
    """Several faults found in one go, each with its own place and remedy."""

    def __init__(self, code: str, errors: Sequence[ScenariumError], **values: Any) -> None:
        super().__init__(code, count=len(errors), **values)
        self.errors = list(errors)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild_several, (self.code, self.errors, self.values))

    def title(self, lang: Language = "en") -> str:
        places = (f"{e.file}:{e.line}: " if e.line else f"{e.file}: " if e.file else "" for e in self.errors)
        return "\n".join([super().title(lang), *(f"  {e.code} {place}{e.title(lang)} {e.hint(lang)}" for e, place in zip(self.errors, places, strict=True))])

    def problem(self, lang: Language = "en") -> dict[str, Any]:
        return {**super().problem(lang), "errors": [error.problem(lang) for error in self.errors]}


def _rebuild_several(code: str, errors: Sequence[ScenariumError], values: dict[str, Any]) -> SeveralErrors:
    return SeveralErrors(code, errors, **{key: value for key, value in values.items() if key != "count"})


class BadInput(ScenariumError):
    """The client sent a field that cannot be used. Raise it from ``preprocess``, ``encode`` or ``stream``.

    >>> raise BadInput("image", "is cut off after 17 bytes", "在第 17 字节处被截断")
    """

    def __init__(self, field: str, en: str, zh: str) -> None:
        super().__init__("SCN-4001", field=field, reason_en=en, reason_zh=zh)


class BadValue(ValueError):
    """A setting or a field of a request is not what it must be. Raise it from a pydantic validator, which takes a ``ValueError`` alone.

    >>> raise BadValue("give only one of project, archive and url", "project、archive 和 url 只能给出一个")
    """

    def __init__(self, en: str, zh: str) -> None:
        super().__init__(en)
        self.words = Words(en, zh)


class BadData(ScenariumError):
    """The user's training data cannot be used, in a way that only the plugin sees. Raise it from ``fit``, ``items`` or ``train``.

    ``field`` is the row's field; ``row`` gives file and line where it was read from a file.
    """

    def __init__(self, field: str, en: str, zh: str, row: Mapping[str, Any] | None = None) -> None:
        row = row or {}
        super().__init__("SCN-0001", field=field, file=row.get("_file"), line=row.get("_line"), reason_en=en, reason_zh=zh)
