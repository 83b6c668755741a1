"""What the user wrote, in layers, and where each value came from; nothing here imports pydantic, so listing stays fast.

Later wins: the plugin's default < ``scenarios.toml`` < ``SCENARIUM_…`` environment variables < ``--set a.b=c``.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from scenarium.core.errors import ScenariumError, SeveralErrors, Words

if TYPE_CHECKING:
    from pydantic import BaseModel

TABLES = ("scenarios", "gateway", "scenarium")
"""The top-level tables of ``scenarios.toml``."""


DESCRIBED = "SCENARIUM_UNDESCRIBED" not in os.environ
"""Whether classes of settings, requests and answers carry their fields' documentation.

Not in a worker, which shows it to nobody: to find it, pydantic looks at the frames of the import, and ``inspect`` then at every module
that is loaded; in a process forked from a zygote that makes 25 MB of shared pages private.
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: ``default``, ``file`` (with path and line), ``environment`` or ``--set``."""

    kind: Literal["default", "file", "environment", "--set"]
    name: str = ""
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.name}:{self.line}" if self.line else self.name
        return where or self.kind

    @property
    def place(self) -> dict[str, Any]:
        """``file`` and ``line`` for a ``ScenariumError``, where the value stands in a file."""
        return {"file": self.name, "line": self.line} if self.kind == "file" else {}


C = TypeVar("C", bound="BaseModel")

Flat: TypeAlias = dict[tuple[str, ...], tuple[Any, Origin]]
"""Dotted key, split, to value and origin; a later entry overrides an earlier one."""


class Settings:
    """What the user wrote, before any plugin's class has seen it.

    >>> Settings.read(environ={}, sets=["train.epochs=2"], scenario="fraud_text").table("scenarios", "fraud_text")
    {'train': {'epochs': 2}}
    """

    def __init__(self, flat: Flat, path: Path | None) -> None:
        self.flat = flat
        self.path = path

    @classmethod
    def read(
        cls, path: Path | str | None = None, *, environ: Mapping[str, str] | None = None, sets: Sequence[str] = (), scenario: str | None = None
    ) -> Settings:
        """Join file, environment and ``--set`` values. ``sets`` belong to ``scenario`` unless they start with one of ``TABLES``;
        without ``scenario`` their first part names one.

        Without ``path`` the nearest ``scenarios.toml`` from here upwards is read, if there is one.

        Raises:
            ScenariumError: SCN-1005 (no readable TOML), SCN-1003 (unknown table), SCN-1004 (a ``--set`` without ``=``).
        """
        found = Path(path) if path else _nearest()
        flat: Flat = {}
        layers = (_file_layer(found) if found else {}, _environment_layer(os.environ if environ is None else environ), _set_layer(sets, scenario))
        for layer in layers:
            for key, value in layer.items():
                flat.pop(key, None)  # a dict keeps the place of the first insertion, and the order is the precedence
                flat[key] = value
        return cls(flat, found)

    def table(self, *prefix: str) -> dict[str, Any]:
        """The nested values below ``prefix``."""
        nested: dict[str, Any] = {}
        for key, (value, _) in self.flat.items():
            if key[: len(prefix)] != prefix or len(key) == len(prefix):
                continue
            inner = nested
            for part in key[len(prefix) : -1]:
                if not isinstance(inner.get(part), dict):
                    inner[part] = {}
                inner = inner[part]
            inner[key[-1]] = dict(value) if isinstance(value, dict) else value
        return nested

    def scenarios(self) -> dict[str, dict[str, Any]]:
        """The tables ``[scenarios.<name>]``."""
        return {name: table for name, table in self.table("scenarios").items() if isinstance(table, dict)}

    def origin(self, *key: str) -> Origin:
        """Where the value of ``key`` came from; for a table, the last of its values."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.flat:
                return self.flat[key[:length]][1]
        inner = [origin for other, (_, origin) in self.flat.items() if other[: len(key)] == key]
        return inner[-1] if inner else Origin("default")

    @property
    def home(self) -> Path:
        """The folder that relative paths of the settings refer to: the file's, else the user's data folder."""
        if self.path:
            return self.path.parent.resolve()
        base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
        return Path(base) / "scenarium"

    @property
    def store_url(self) -> str:
        """Where versions are kept: ``[scenarium] store``, ``SCENARIUM_STORE``, else ``store`` in ``home``."""
        entry = self.flat.get(("scenarium", "store"))
        url = os.path.expanduser(str(entry[0])) if entry else str(self.home / "store")
        if "://" in url or Path(url).is_absolute():
            return url
        return str((self.home if entry and entry[1].kind == "file" else Path.cwd()) / url)

    def path_of(self, value: str, *key: str) -> Path:
        """The file that the setting ``key`` names: a relative one lies in ``home`` where a file or the default says it, else in the current folder."""
        path = Path(value).expanduser()
        return path if path.is_absolute() else (self.home if self.origin(*key).kind in ("file", "default") else Path.cwd()) / path

    def validate(self, cls: type[C], prefix: tuple[str, ...], name: str, *, ignore: Sequence[str] = ()) -> C:
        """The values below ``prefix`` as an instance of ``cls``. ``name`` is what ``scenarium config explain`` takes.

        Raises:
            ScenariumError: SCN-1003 (unknown key, with the nearest valid one), SCN-1004 (bad value), with file and line;
                SCN-1007 where several settings are wrong, all of them named.
        """
        from pydantic import ValidationError

        values = {key: value for key, value in self.table(*prefix).items() if key not in ignore}
        try:
            return cls.model_validate(values)
        except ValidationError as fault:
            errors = [self._problem(cls, prefix, name, dict(error)) for error in fault.errors(include_url=False)]
        raise errors[0] if len(errors) == 1 else SeveralErrors("SCN-1007", errors, name=name)

    def _problem(self, cls: type[BaseModel], prefix: tuple[str, ...], name: str, error: Mapping[str, Any]) -> ScenariumError:
        location = tuple(str(part) for part in error["loc"])
        origin = self.origin(*prefix, *location)
        dotted = ".".join(location)
        if error["type"] == "extra_forbidden":
            return ScenariumError("SCN-1003", field=dotted, **origin.place, nearest=nearest_name(dotted, setting_names(cls)), name=name)
        from scenarium.core.reasons import reason

        return ScenariumError("SCN-1004", field=dotted, **origin.place, reason=reason(error), origin=str(origin), name=name)


def cache_home() -> Path:
    """``$XDG_CACHE_HOME/scenarium``, else ``~/.cache/scenarium``: what may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scenarium"


def setting_names(cls: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all settings of a class: ``data.path``, ``train.epochs``, …"""
    names = []
    for name, info in cls.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and hasattr(inner, "model_fields"):
            names += setting_names(inner, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def nearest_name(name: str, names: Sequence[str]) -> str:
    """The most similar of ``names``; a bare last part (``epoch``) is compared with last parts too. None alike: the first parts."""
    last = {n.rpartition(".")[2]: n for n in names}
    close = difflib.get_close_matches(name, names, 1, 0.6) or [last[n] for n in difflib.get_close_matches(name.rpartition(".")[2], last, 1, 0.5)]
    return close[0] if close else ", ".join(sorted({n.partition(".")[0] for n in names}))


def _nearest() -> Path | None:
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "scenarios.toml").is_file():
            return folder / "scenarios.toml"
    return None


def _value(text: str) -> Any:
    """A value given as text: JSON where it parses (``3``, ``true``, ``["a"]``), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def _set_layer(sets: Sequence[str], scenario: str | None) -> Flat:
    flat: Flat = {}
    for entry in sets:
        key, equals, text = entry.partition("=")
        parts = tuple(part.strip() for part in key.split("."))
        if not equals or not all(parts):
            reason = Words("--set takes key=value, for example train.epochs=2", "--set 应写作 键=值，例如 train.epochs=2")
            raise ScenariumError("SCN-1004", field=entry, reason=reason, origin="--set", name=scenario or "NAME")
        if parts[0] not in TABLES:
            parts = ("scenarios", scenario, *parts) if scenario else ("scenarios", *parts)
        flat[parts] = (_value(text), Origin("--set", f"--set {key.strip()}"))
    return flat


def _environment_layer(environ: Mapping[str, str]) -> Flat:
    """``SCENARIUM_STORE``; ``SCENARIUM_GATEWAY__PORT``; ``SCENARIUM_FRAUD_TEXT__TRAIN__EPOCHS``: two underscores are a dot."""
    flat: Flat = {}
    for name, text in environ.items():
        if not name.startswith("SCENARIUM_"):
            continue
        parts = tuple(part.lower() for part in name.removeprefix("SCENARIUM_").split("__"))
        origin = Origin("environment", name)
        if parts == ("store",):
            flat["scenarium", "store"] = (text, origin)
        elif len(parts) > 1 and all(parts):
            flat[parts if parts[0] in TABLES else ("scenarios", *parts)] = (_value(text), origin)
    return flat


def _file_layer(path: Path) -> Flat:
    try:
        text = path.read_text(encoding="utf-8-sig")
        tables = tomllib.loads(text)
    except OSError as fault:
        raise ScenariumError("SCN-1005", file=path, reason=fault.strerror or str(fault)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        at = re.search(r"line (\d+)", str(fault))
        raise ScenariumError("SCN-1005", file=path, line=int(at[1]) if at else None, reason=str(fault)) from None
    lines = _lines(text, tables)

    def line(key: tuple[str, ...]) -> int | None:
        above = (lines[key[:length]] for length in range(len(key), 0, -1) if key[:length] in lines)
        below = (number for other, number in lines.items() if other[: len(key)] == key)
        return next(above, None) or next(below, None)

    def walk(table: dict[str, Any], prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for key, value in table.items():
            if isinstance(value, dict) and (value or not prefix):
                yield from walk(value, (*prefix, key))
            else:
                yield (*prefix, key), value

    for key, value in tables.items():
        inner = [((key, name), value[name]) for name in value] if key == "scenarios" and isinstance(value, dict) else [((key,), value)]
        for place, table in inner:
            if key not in TABLES or not isinstance(table, dict):
                nearest = f"[{nearest_name(key, TABLES)}]" if key not in TABLES else f"[{'.'.join(place)}]"
                raise ScenariumError("SCN-1003", field=".".join(place), file=path, line=line(place), nearest=nearest, name="NAME")
    return {key: (value, Origin("file", str(path), line(key))) for key, value in walk(tables, ())}


def _lines(text: str, tables: Mapping[str, Any]) -> dict[tuple[str, ...], int]:
    """Line of each key and table header. tomllib gives no positions; a key starts its line in TOML, and what only looks like
    one (inside a long string or an array) is no path of ``tables``."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if (header := re.match(r"\s*\[+\s*([^\[\]]+?)\s*\]+\s*(#.*)?$", line)) and _holds(tables, tuple(_dotted(header[1]))):
            table = tuple(_dotted(header[1]))
            found.setdefault(table, number)
        elif (pair := re.match(r"\s*([^=#\[]+?)\s*=", line)) and _holds(tables, path := (*table, *_dotted(pair[1]))):
            for length in range(len(table) + 1, len(path) + 1):
                found.setdefault(path[:length], number)
    return found


def _holds(tables: Any, path: tuple[str, ...]) -> bool:
    for part in path:
        if isinstance(tables, list) and tables:
            tables = tables[-1]
        if not isinstance(tables, dict) or part not in tables:
            return False
        tables = tables[part]
    return True


def _dotted(text: str) -> list[str]:
    return [(quoted or plain) for quoted, plain in re.findall(r"[\"']([^\"']+)[\"']|([^.\s]+)", text)]
