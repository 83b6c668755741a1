"""The plugin under check: where it stands, what it declares, a slice of its data, and a small trained version."""

from __future__ import annotations

import difflib
import json
import os
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlparse

from pydantic import BaseModel, ConfigDict, ValidationError

from scenarium.core import datasets, pipeline
from scenarium.core.errors import ScenariumError
from scenarium.core.kit.bad import Bad, bad_bodies
from scenarium.core.kit.checks import CHECKS, Tier, all_checks
from scenarium.core.kit.probe import NoExport, Probe
from scenarium.core.kit.rows import generated_rows
from scenarium.core.progress import Progress
from scenarium.core.reasons import reason
from scenarium.core.registry import PLUGINS, Plugin, Registry, Scenario
from scenarium.core.relay import implemented
from scenarium.core.runtime import STATE, Runtime
from scenarium.core.settings import Settings
from scenarium.core.store import Store, Version
from scenarium.core.types import Data

if TYPE_CHECKING:
    from scenarium.core.kit.child import Report

TRACKING = "MLFLOW_TRACKING_URI"
"""Empty: no tracking (``scenarium.core.tracking``)."""

STEPS = 4
"""Optimizer steps of the small training. Two before and two after the simulated kill."""

TRIAL = (
    "data.limit=200",
    f"train.max_steps={STEPS}",
    "train.batch_size=4",
    "train.checkpoint_steps=1",
    "train.precision=fp32",
    "train.warmup=0",
    "train.nproc=1",
    "train.threads=1",
)
"""Settings of the small training; a plugin adds its own under ``[tool.scenarium] check``."""


class Declaration(BaseModel):
    """``[tool.scenarium]`` of the plugin's pyproject.toml."""

    model_config = ConfigDict(extra="forbid")

    tier: Tier = "bronze"
    """The bar that the plugin claims to reach."""
    exempt: dict[str, str] = {}
    """Checks that do not apply, each with its reason."""
    check: list[str] = []
    """Settings for the small training of the kit (``model.width=8``), as for ``--set``."""

    @classmethod
    def read(cls, project: Path | None) -> Declaration:
        """The declaration of a plugin's folder; the default one where there is none.

        Raises:
            ScenariumError: SCN-7002 (unknown key or tier), SCN-7003 (an exemption of a check that does not exist).
        """
        file = project / "pyproject.toml" if project else None
        if file is None or not file.is_file():
            return cls()
        table = tomllib.loads(file.read_text(encoding="utf8")).get("tool", {}).get("scenarium", {})
        try:
            declaration = cls.model_validate(table)
        except ValidationError as fault:
            first = fault.errors(include_url=False)[0]
            raise ScenariumError("SCN-7002", file=file, field=".".join(map(str, first["loc"])), reason=reason(first)) from None
        all_checks()
        for name in declaration.exempt:
            if name not in CHECKS:
                raise ScenariumError("SCN-7003", file=file, name=name, nearest=", ".join(difflib.get_close_matches(name, CHECKS, 3, 0.3)) or "-")
        return declaration


class Subject:
    """One plugin under check. What is dear (data, training) is made once, on first use."""

    def __init__(self, registry: Registry, name: str, project: Path | None, work: Path, declaration: Declaration) -> None:
        self.registry = registry
        self.project = project
        """Folder with the plugin's pyproject.toml; None for a single file or an installed wheel."""
        self.work = work
        self.declaration = declaration
        self.probe, self.no_export = Probe(), NoExport()
        self.child: Report | None = None
        found = registry.scenario(name)
        self.scenario = Scenario(name, found.plugin, found.settings, {**found.extensions, "kit": self.probe, "no export": self.no_export})

    @classmethod
    def open(cls, target: str, work: Path, sets: Sequence[str] = ()) -> Subject:
        """The plugin called ``target``, or the one in the folder or single file ``target``.

        Raises:
            ScenariumError: SCN-1001 (no such scenario), SCN-7004 (a path without a plugin), and those of ``Declaration.read``.
        """
        located = locate(target)
        declaration = Declaration.read(located.project)
        own = [_anchored(entry, located.project) for entry in declaration.check]
        settings = Settings.read(sets=[*TRIAL, *own, *sets], scenario=located.name)
        return cls(Registry(settings, {located.plugin.name: located.plugin}), located.name, located.project, work, declaration)

    @property
    def name(self) -> str:
        """The scenario's name."""
        return self.scenario.name

    @property
    def hook(self) -> Any:
        """The relay."""
        return self.scenario.hook

    @property
    def config(self) -> Any:
        """The settings of the small training."""
        return self.scenario.config

    @cached_property
    def home(self) -> Path | None:
        """The folder (or single file) with the author's code."""
        file = getattr(self.scenario.implementation, "__file__", None)
        if file is None:
            return None
        return Path(file).parent if Path(file).name == "__init__.py" else Path(file)

    @cached_property
    def implemented(self) -> list[str]:
        """Names of the hooks that the plugin implements."""
        return implemented(self.scenario.implementation)

    @cached_property
    def data(self) -> Data:
        """A slice of the plugin's data; rows made from its sample where its sources cannot be read here."""
        try:
            return datasets.prepare(self.scenario, Progress())
        except ScenariumError as fault:
            rows = generated_rows(self.hook, self.config)
            if rows is None:
                raise fault
            self.probe.rows = rows
            return datasets.prepare(self.scenario, Progress())

    @cached_property
    def trained(self) -> Version:
        """A version after ``STEPS`` optimizer steps, made by the real pipeline."""
        assert self.data
        return self.train("store", "runs")

    def train(self, store: str, work: str, *, resume: bool = False, export: bool = True) -> Version:
        """One small training by the real pipeline, with these folders of the subject's own. It is not recorded in MLflow."""
        self.no_export.on = not export
        before = os.environ.get(TRACKING)
        os.environ[TRACKING] = ""
        try:
            return pipeline.train(self.scenario, Store(str(self.work / store)), self.work / work, resume=resume).version
        finally:
            del os.environ[TRACKING]
            if before is not None:
                os.environ[TRACKING] = before

    @cached_property
    def runtime(self) -> Runtime:
        """The trained version, loaded with the engine ``torch`` (or the plugin's own ``load``)."""
        return self.open_runtime("torch")

    def open_runtime(self, engine: str) -> Runtime:
        """Load the trained version afresh with an engine."""
        config = self.config.model_copy(update={"serve": self.config.serve.model_copy(update={"engine": engine})})
        state = json.loads((self.trained.folder / STATE).read_text(encoding="utf8"))
        # Without the check of the sample's answer that guards a stored version: the kit's own checks say more precisely what is wrong.
        return Runtime(self.scenario.with_config(config), state, self.trained.folder, traits=self.trained.manifest.traits)

    @cached_property
    def requests(self) -> list[BaseModel]:
        """The sample, and requests that the measurement of the trained version made of held-out rows."""
        assert self.trained
        sample = self.hook.sample(config=self.config)
        return [sample, *(request for request in self.probe.requests if request != sample)]

    @cached_property
    def bad_answers(self) -> list[tuple[Bad, BaseModel | Exception]]:
        """What the trained version says to bad bodies made from the sample."""
        return [(bad, self._send(bad)) for bad in bad_bodies(self.hook.sample(config=self.config))]

    def _send(self, bad: Bad) -> BaseModel | Exception:
        try:
            return self.runtime.predict([self.runtime.decode(bad.body, bad.content_type)])[0]
        except ScenariumError as error:
            return error

    @contextmanager
    def killed_at(self, loss: int) -> Iterator[None]:
        """Within, the training dies as the ``loss`` hook is called for the ``loss``-th time."""
        self.probe.kill_at = loss
        try:
            yield
        finally:
            self.probe.kill_at = None


class Located(NamedTuple):
    """A plugin found by name or path."""

    name: str
    """The scenario: the plugin's name, but for a table of scenarios.toml that names another plugin."""
    plugin: Plugin
    project: Path | None
    """The folder of its pyproject.toml."""


def locate(target: str) -> Located:
    """The plugin called ``target``, or the one in the folder or single file ``target``.

    Raises:
        ScenariumError: SCN-1001 (no such scenario), SCN-1006 (its plugin is not installed), SCN-7004 (a path without a plugin).
    """
    path = Path(target)
    if target.endswith(".py") or (path / "pyproject.toml").is_file():
        plugin, project = _plugin_at(path)
        return Located(plugin.name, plugin, project)
    if path.is_dir() and os.sep in target:
        raise ScenariumError("SCN-7004", file=path)
    plugin = Registry(Settings.read()).scenario(target).plugin
    return Located(target, plugin, _project_of(plugin))


def _plugin_at(path: Path) -> tuple[Plugin, Path | None]:
    if path.suffix == ".py":
        if not path.is_file():
            raise ScenariumError("SCN-7004", file=path)
        return Plugin(path.stem, str(path.resolve()), path.stem, "0.1.0"), None
    project = path.resolve()
    table = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf8")).get("project", {})
    claims = table.get("entry-points", {}).get(PLUGINS, {})
    if not claims:
        raise ScenariumError("SCN-7004", file=path)
    name, target = next(iter(claims.items()))
    if str(project) not in sys.path:
        sys.path.insert(0, str(project))
    return Plugin(name, target, table.get("name", name), table.get("version", "0.1.0")), project


def _project_of(plugin: Plugin) -> Path | None:
    """The source folder of an editable install."""
    try:
        text = distribution(plugin.distribution).read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    url = json.loads(text or "{}").get("url", "")
    folder = Path(unquote(urlparse(url).path)) if url.startswith("file:") else None
    return folder if folder and (folder / "pyproject.toml").is_file() else None


def _anchored(entry: str, project: Path | None) -> str:
    """A setting whose value is a file of the plugin's folder, made independent of the current folder."""
    key, _, value = entry.partition("=")
    return f"{key}={project / value}" if project and value and (project / value).exists() else entry
