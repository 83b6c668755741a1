"""The settings of a scenario, and where each value came from.

Later wins: the plugin's default < ``scenarios.toml`` < ``SCENARIUM_…`` environment variables < ``--set a.b=c``.
The field documentation below each setting is what ``scenarium config explain`` and the hand-book show.
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
from typing import Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scenarium.core.errors import ScenariumError


class Section(BaseModel):
    """A table of settings. Unknown keys are refused; each field is documented by the string below it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class DataConfig(Section):
    """Which data to train on and how to split it."""

    path: str | None = None
    """The user's own data: a file, a folder or any fsspec URL; `hf://` and `ms://` name hub data sets. None: the plugin's default sources."""
    map: dict[str, str] = {}
    """Field of the scenario to column of the file: `--map text=content`."""
    map_label: dict[str, str] = {}
    """Label in the file to label of the scenario: `--map-label spam=fraud`."""
    split: str = "random"
    """`random`, `time:COLUMN` (the latest rows are held out) or `group:COLUMN` (a group is never torn apart)."""
    val: float = Field(0.1, ge=0, lt=1)
    """Share of the rows for validation while training."""
    test: float = Field(0.2, ge=0, lt=1)
    """Share of the rows held out for the final measurement."""
    limit: int | None = Field(None, gt=0)
    """Use at most so many rows (a trial run)."""
    accept_licence: list[str] = []
    """Names of default sources whose licence needs consent and is accepted."""


class ModelConfig(Section):
    """The model's settings; plugins subclass it."""


class TrainConfig(Section):
    """The shared trainer's settings."""

    epochs: int = Field(3, gt=0)
    """Passes over the training rows."""
    max_steps: int | None = Field(None, gt=0)
    """Stop after so many optimizer steps."""
    batch_size: int = Field(32, gt=0)
    """Rows of a micro-batch on one device."""
    accumulate: int = Field(1, gt=0)
    """Micro-batches of one optimizer step."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's weight decay, not on biases and norms."""
    warmup: float = Field(0.05, ge=0)
    """Linear warm-up: a share of all steps below 1, a number of steps from 1 on."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 where the processor multiplies it natively, else fp32. fp16 uses a GradScaler."""
    clip: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient of one step; None: no clipping."""
    patience: int | None = Field(None, gt=0)
    """Stop after so many epochs without a better validation loss."""
    seed: int = 0
    """Seed of weights, row order and augmentation."""
    checkpoint_steps: int | None = Field(None, gt=0)
    """Optimizer steps between checkpoints; None: at the end of each epoch and every 60 s."""
    nproc: int = Field(1, gt=0)
    """Processes for data parallel training on this machine."""
    threads: int | None = Field(None, gt=0)
    """Threads of one process; None: the cores dealt evenly."""


class ServeConfig(Section):
    """How the scenario is served; the only section that a gateway reads from `scenarios.toml`."""

    engine: str = "torch"
    """What runs the forward: `torch`, `onnx`, `openvino` or `triton`."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda:N`."""
    workers: int = Field(1, gt=0)
    """Worker processes."""
    threads: int | None = Field(None, gt=0)
    """Threads of one worker; None: cores dealt among busy workers."""
    max_batch_size: int | None = Field(None, gt=0)
    """Most items of one batch; None: the plugin's own limit."""
    max_delay_ms: float = Field(0, ge=0)
    """Wait so long for a batch to fill. 0: a free worker takes what waits."""
    deadline_ms: float = Field(30_000, gt=0)
    """A request that is not answered in time ends with 504."""
    queue_size: int = Field(256, gt=0)
    """Requests that may wait; more are refused with 503 and Retry-After."""
    max_body_bytes: int = Field(16 * 1024 * 1024, gt=0)
    """Largest request body."""
    required: bool = False
    """Whether the gateway's /readyz waits for this scenario."""
    log_payloads: bool = False
    """Write each request and answer to the log, masked by the installed extensions."""


class ScenarioConfig(Section):
    """All settings of one scenario."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    serve: ServeConfig = ServeConfig()


class GatewayConfig(Section):
    """The gateway's own settings: table `[gateway]`."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8080, ge=0, lt=65536)
    """Port to listen on; 0: any free one."""
    drain_s: float = Field(30.0, gt=0)
    """How long requests in flight may take after SIGTERM."""
    log_format: Literal["json", "text"] = "json"
    """Form of the log lines."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: ``default``, ``file`` (with path and line), ``environment`` or ``--set``."""

    kind: Literal["default", "file", "environment", "--set"]
    name: str = ""
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.name}:{self.line}" if self.line else self.name
        return where or self.kind


C = TypeVar("C", bound=Section)

Flat: TypeAlias = dict[tuple[str, ...], tuple[Any, Origin]]
"""Dotted key, split, to value and origin."""


class Settings:
    """What the user wrote, in layers, before any plugin's class has seen it.

    >>> Settings.read(None, environ={}, sets=["train.epochs=2"], scenario="fraud_text").of_scenario("fraud_text")
    """

    def __init__(self, flat: Flat, path: Path | None) -> None:
        self.flat = flat
        self.path = path

    @classmethod
    def read(
        cls, path: Path | str | None = None, *, environ: Mapping[str, str] | None = None, sets: Sequence[str] = (), scenario: str | None = None
    ) -> Settings:
        """Join file, environment and ``--set`` values. ``sets`` belong to ``scenario`` unless they start with ``scenarios.``,
        ``gateway.`` or ``scenarium.``.

        Without ``path`` the nearest ``scenarios.toml`` from here upwards is read, if there is one.

        Raises:
            ScenariumError: SCN-1005 (not TOML), SCN-1004 (a ``--set`` without ``=``).
        """
        found = Path(path) if path else _nearest()
        flat: Flat = {}
        if found:
            flat.update(_file_layer(found))
        flat.update(_environment_layer(os.environ if environ is None else environ))
        for entry in sets:
            key, equals, text = entry.partition("=")
            if not equals:
                raise ScenariumError("SCN-1004", field=entry, reason="--set takes key=value", origin="--set", name=scenario or "NAME")
            parts = tuple(key.strip().split("."))
            if scenario and parts[0] not in ("scenarios", "gateway", "scenarium"):
                parts = ("scenarios", scenario, *parts)
            flat[parts] = (_value(text), Origin("--set", f"--set {key.strip()}"))
        return cls(flat, found)

    def table(self, *prefix: str) -> dict[str, Any]:
        """The nested values below ``prefix``."""
        nested: dict[str, Any] = {}
        for key, (value, _) in self.flat.items():
            if key[: len(prefix)] == prefix and len(key) > len(prefix):
                inner = nested
                for part in key[len(prefix) : -1]:
                    inner = inner.setdefault(part, {})
                inner[key[-1]] = value
        return nested

    def scenarios(self) -> dict[str, dict[str, Any]]:
        """The tables ``[scenarios.<name>]``."""
        return {name: table for name, table in self.table("scenarios").items() if isinstance(table, dict)}

    def origin(self, *key: str) -> Origin:
        """Where the value of ``key`` came from."""
        best = self.flat.get(key)
        if best:
            return best[1]
        # A table given as a whole (``--set train={...}``) is found under its own key.
        for length in range(len(key) - 1, 0, -1):
            if key[:length] in self.flat:
                return self.flat[key[:length]][1]
        return Origin("default")

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
        url = str(entry[0]) if entry else str(self.home / "store")
        if "://" in url or Path(url).is_absolute():
            return url
        return str((self.home if entry and entry[1].kind == "file" else Path.cwd()) / url)

    def validate(self, cls: type[C], prefix: tuple[str, ...], name: str, *, ignore: Sequence[str] = ()) -> C:
        """The values below ``prefix`` as an instance of ``cls``.

        Raises:
            ScenariumError: SCN-1003 (unknown key, with the nearest valid one), SCN-1004 (bad value), with file and line.
        """
        values = {k: v for k, v in self.table(*prefix).items() if k not in ignore}
        try:
            return cls.model_validate(values)
        except ValidationError as fault:
            first = fault.errors(include_url=False)[0]
            location = tuple(str(part) for part in first["loc"])
            origin = self.origin(*prefix, *location)
            file, line = (origin.name, origin.line) if origin.kind == "file" else (None, None)
            dotted = ".".join(location)
            if first["type"] == "extra_forbidden":
                nearest = nearest_name(dotted, setting_names(cls))
                raise ScenariumError("SCN-1003", field=dotted, file=file, line=line, nearest=nearest, name=name) from None
            raise ScenariumError("SCN-1004", field=dotted, file=file, line=line, reason=first["msg"], origin=str(origin), name=name) from None


def setting_names(cls: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all settings of a class: ``data.path``, ``train.epochs``, …"""
    names = []
    for name, info in cls.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            names += setting_names(inner, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def nearest_name(name: str, names: Sequence[str]) -> str:
    """The most similar of ``names``; a bare last part (``epoch``) is compared with last parts too."""
    last = {n.rpartition(".")[2]: n for n in names}
    close = difflib.get_close_matches(name, names, 1, 0.6) or [last[n] for n in difflib.get_close_matches(name.rpartition(".")[2], last, 1, 0.5)]
    return close[0] if close else ", ".join(sorted({n.partition(".")[0] for n in names}))


def explain(settings: Settings, cls: type[ScenarioConfig], name: str) -> Iterator[tuple[str, Any, Origin, str]]:
    """Every setting of a scenario: dotted name, value, origin, documentation."""
    config = settings.validate(cls, ("scenarios", name), name, ignore=("plugin", "enabled"))

    def walk(section: Section, prefix: tuple[str, ...]) -> Iterator[tuple[str, Any, Origin, str]]:
        for field, info in type(section).model_fields.items():
            value = getattr(section, field)
            if isinstance(value, Section):
                yield from walk(value, (*prefix, field))
            else:
                yield ".".join((*prefix, field)), value, settings.origin("scenarios", name, *prefix, field), info.description or ""

    yield from walk(config, ())


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
        elif len(parts) > 1:
            flat[parts if parts[0] in ("gateway", "scenarium") else ("scenarios", *parts)] = (_value(text), origin)
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
    lines = _lines(text)

    def walk(table: dict[str, Any], prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for key, value in table.items():
            if isinstance(value, dict) and value:
                yield from walk(value, (*prefix, key))
            else:
                yield (*prefix, key), value

    return {key: (value, Origin("file", str(path), lines.get(key) or lines.get(key[:-1]))) for key, value in walk(tables, ())}


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Line of each key and table header. tomllib gives no positions, and a key starts its line in TOML."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
            table = tuple(_dotted(header[1]))
            found.setdefault(table, number)
        elif pair := re.match(r"\s*([^=#\[]+?)\s*=", line):
            found.setdefault((*table, *_dotted(pair[1])), number)
    return found


def _dotted(text: str) -> list[str]:
    return [(quoted or plain) for quoted, plain in re.findall(r"[\"']([^\"']+)[\"']|([^.\s]+)", text)]
