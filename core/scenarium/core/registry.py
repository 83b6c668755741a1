"""Which plugins are installed, and the scenarios made of them.

Listing reads distribution metadata only and imports nothing. Importing a plugin happens in ``Registry.scenario``, whose
every failure becomes one ``ScenariumError`` with the reason and the remedy, so that one broken plugin harms no other.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenarium.core.config import ScenarioConfig, ServeConfig, Settings
from scenarium.core.errors import ScenariumError

if TYPE_CHECKING:
    import pluggy

PLUGINS = "scenarium.scenarios"
"""Entry-point group: plugin name = module (or ``module:object``) that implements the hooks."""
HOOK_API_GROUP = "scenarium.hook_api"
"""Entry-point group: plugin name = the hook API it was written for (``1.0``). Absent: 1.0."""
EXTENSIONS = "scenarium.extensions"
"""Entry-point group: modules or objects that join every scenario's relay."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """An installed plugin, known from metadata alone."""

    name: str
    target: str
    """``module`` or ``module:object``; for ``scenarium dev`` the path of a single file."""
    distribution: str
    version: str
    hook_api: str = "1.0"
    error: ScenariumError | None = None
    """Why it cannot be used, as far as metadata tells (name clash, newer hook API)."""

    def load(self) -> object:
        """Import the plugin.

        Raises:
            ScenariumError: SCN-1002, whatever the import did: syntax error, missing module, ``sys.exit``.
        """
        if self.error:
            raise self.error
        try:
            if self.target.endswith(".py"):
                return _load_file(Path(self.target))
            module, _, attribute = self.target.partition(":")
            found: object = importlib.import_module(module)
            for part in filter(None, attribute.split(".")):
                found = getattr(found, part)
            return found
        except KeyboardInterrupt:
            raise
        except BaseException as fault:
            raise self.broken(*import_fault(fault)) from fault

    def broken(self, reason: str, remedy: str) -> ScenariumError:
        """The error that names this plugin, the reason and the remedy."""
        return ScenariumError("SCN-1002", plugin=self.name, distribution=f"{self.distribution} {self.version}", reason=reason, remedy=remedy)


def import_fault(fault: BaseException) -> tuple[str, str]:
    """Reason and remedy of a failed import, in words that name file and line."""
    if isinstance(fault, SyntaxError):
        return f"{type(fault).__name__} in {fault.filename}:{fault.lineno}: {fault.msg}", "Correct that line, or install another version of the plugin."
    if isinstance(fault, SystemExit):
        return f"it calls sys.exit({fault.code!r}) while it is imported", "Remove the call, or install another version of the plugin."
    if isinstance(fault, ModuleNotFoundError):
        return f"the module {fault.name!r} is missing", f"Run: pip install {(fault.name or '').partition('.')[0]}"
    frames = traceback.extract_tb(fault.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(fault).__name__}: {fault}{place}", "Correct the plugin, or install another version of it."


def _load_file(path: Path) -> object:
    name = f"_scenarium_dev_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def installed_plugins() -> dict[str, Plugin]:
    """Every plugin by name, from metadata. A name claimed twice is one row whose error names both distributions."""
    from scenarium.core.hookspecs import HOOK_API

    apis = {entry.name: entry.value for entry in entry_points(group=HOOK_API_GROUP)}
    claims: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=PLUGINS):
        # An editable install beside a wheel's metadata lists the same claim twice.
        if not any(_distribution(entry) == _distribution(other) for other in claims.setdefault(entry.name, [])):
            claims[entry.name].append(entry)
    found = {}
    for name, entries in sorted(claims.items()):
        distribution, version = _distribution(entries[0])
        plugin = Plugin(name, entries[0].value, distribution, version, apis.get(name, "1.0"))
        error = None
        if len(entries) > 1:
            both = " and ".join(sorted(_distribution(e)[0] for e in entries))
            error = plugin.broken(f"{both} both claim the name {name!r}", f"Run: pip uninstall {_distribution(entries[-1])[0]}")
        else:
            major, minor = (int(part) for part in plugin.hook_api.split(".")[:2])
            if major != HOOK_API[0] or minor > HOOK_API[1]:
                ours = ".".join(map(str, HOOK_API))
                newer = (major, minor) > HOOK_API
                remedy = "Run: pip install -U scenarium" if newer else f"Run: pip install -U {distribution}"
                error = plugin.broken(f"it was written for hook API {plugin.hook_api}, this scenarium has {ours}", remedy)
        found[name] = Plugin(name, plugin.target, distribution, version, plugin.hook_api, error)
    return found


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist else ("unknown", "0")


@dataclass
class Scenario:
    """A named endpoint made of a plugin and its own settings."""

    name: str
    plugin: Plugin
    settings: Settings
    extensions: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def implementation(self) -> object:
        """The imported plugin."""
        return self.plugin.load()

    @cached_property
    def hook(self) -> pluggy.HookRelay:
        """The relay: ``scenario.hook.fit(config=…, rows=…)``."""
        import pluggy

        from scenarium.core.relay import make_relay

        try:
            return make_relay(self.implementation, self.plugin.name, self.extensions)
        except pluggy.PluginValidationError as fault:
            raise self.plugin.broken(str(fault), "Correct the hook's name or arguments: see the hook reference.") from fault

    @cached_property
    def config(self) -> ScenarioConfig:
        """The validated settings."""
        cls: type[ScenarioConfig] = self.hook.config()
        return self.settings.validate(cls, ("scenarios", self.name), self.name, ignore=("plugin", "enabled"))

    def with_config(self, config: ScenarioConfig) -> Scenario:
        """The same scenario with other settings (those of a stored version)."""
        other = Scenario(self.name, self.plugin, self.settings, self.extensions)
        other.__dict__.update(hook=self.hook, config=config, implementation=self.implementation)
        return other


class Registry:
    """The scenarios of this installation: one for each plugin, one for each table that names a plugin."""

    def __init__(self, settings: Settings, plugins: Mapping[str, Plugin] | None = None) -> None:
        self.settings = settings
        self.plugins = dict(installed_plugins() if plugins is None else plugins)
        self._extensions: dict[str, object] | None = None

    def names(self) -> dict[str, str]:
        """Scenario name to plugin name, without those switched off by ``enabled = false``."""
        tables = self.settings.scenarios()
        named = {name: str(table["plugin"]) for name, table in tables.items() if "plugin" in table}
        found = {name: name for name in self.plugins} | named
        return {name: plugin for name, plugin in sorted(found.items()) if tables.get(name, {}).get("enabled", True)}

    def scenario(self, name: str) -> Scenario:
        """The scenario called ``name``; its plugin is imported on first use of ``hook`` or ``config``.

        Raises:
            ScenariumError: SCN-1001 (no such scenario, with the nearest names), SCN-1006 (its plugin is not installed).
        """
        names = self.names()
        if name not in names:
            close = difflib.get_close_matches(name, names, 3, 0.4)
            raise ScenariumError("SCN-1001", name=name, nearest=", ".join(close) or "-")
        plugin = self.plugins.get(names[name])
        if plugin is None:
            origin = self.settings.origin("scenarios", name, "plugin")
            file = origin.name if origin.kind == "file" else None
            raise ScenariumError("SCN-1006", file=file, line=origin.line, name=name, plugin=names[name], dashed=names[name].replace("_", "-"))
        return Scenario(name, plugin, self.settings, self.extensions)

    def serve_config(self, name: str) -> ServeConfig:
        """The ``serve`` section alone, which a gateway may read without importing the plugin."""
        return self.settings.validate(ServeConfig, ("scenarios", name, "serve"), name)

    @property
    def extensions(self) -> dict[str, object]:
        """The installed extensions by name, imported once. One that fails to import stops everything: it may be what masks data."""
        if self._extensions is None:
            self._extensions = {}
            for entry in sorted(entry_points(group=EXTENSIONS), key=lambda e: e.name):
                plugin = Plugin(entry.name, entry.value, *_distribution(entry))
                self._extensions[entry.name] = plugin.load()
        return self._extensions


def open_registry(path: Path | str | None = None, *, sets: tuple[str, ...] = (), scenario: str | None = None) -> Registry:
    """The registry of this process: installed plugins with file, environment and ``sets``."""
    return Registry(Settings.read(path, sets=sets, scenario=scenario))


def load(name: str, **kwargs: Any) -> Any:
    """A scenario for Python code: ``load("fraud_text").train()``, ``.predict({...})``. See ``scenarium.core.handle``."""
    from scenarium.core.handle import Handle

    return Handle(open_registry(**kwargs).scenario(name))
