"""Which plugins are installed, and the scenarios made of them.

Listing reads distribution metadata only and imports nothing. Importing a plugin happens in ``Registry.scenario``, whose
every failure becomes one ``ScenariumError`` with the reason and the remedy, so that one broken plugin harms no other.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenarium.core import __version__, imported
from scenarium.core.errors import ScenariumError, Words
from scenarium.core.settings import Settings

if TYPE_CHECKING:
    import pluggy

    from scenarium.core.config import ScenarioConfig, ServeConfig

PLUGINS = "scenarium.scenarios"
"""Entry-point group: plugin name = module (or ``module:object``) that implements the hooks."""
GENERIC = "scenarium.generic"
"""Entry-point group of plugins that are no scenario by themselves: each model imported with one, or each table that names one, is a scenario."""
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
    generic: bool = False
    """Whether it serves what is imported or named by a table, and is no scenario by itself."""

    def load(self) -> object:
        """Import the plugin.

        Raises:
            ScenariumError: SCN-1002, whatever the import did: syntax error, missing module, ``sys.exit``; or a file hides a hook.
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
        except KeyboardInterrupt:
            raise
        except BaseException as fault:
            raise self.broken(*import_fault(fault)) from fault
        self._refuse_hidden_hooks(found)
        return found

    def _refuse_hidden_hooks(self, plugin: object) -> None:
        """A file ``model.py`` beside a plugin with the hook ``model`` takes the hook's place in the package once something imports it."""
        from scenarium.core.relay import implemented

        for folder in getattr(plugin, "__path__", ()):
            for name in implemented(plugin):
                file = Path(folder) / f"{name}.py"
                if file.is_file():
                    reason = Words(f"the file {file} hides its hook '{name}' once it is imported", f"文件 {file} 一经导入就会遮住它的钩子 '{name}'")
                    raise self.broken(reason, Words("Give the file another name.", "请给该文件换一个名字。"))

    def broken(self, reason: Words, remedy: Words) -> ScenariumError:
        """The error that names this plugin, the reason and the remedy."""
        return ScenariumError("SCN-1002", plugin=self.name, distribution=f"{self.distribution} {self.version}", reason=reason, remedy=remedy)


TENSOR_MODEL = Plugin("tensor_model", "scenarium.core.tensor_model", "scenarium", __version__, generic=True)
"""The built-in plugin that serves imported models."""


def import_fault(fault: BaseException) -> tuple[Words, Words]:
    """Reason and remedy of a failed import, in words that name file and line."""
    mend = Words("Correct the plugin, or install another version of it.", "请修正该插件，或安装其他版本。")
    if isinstance(fault, SyntaxError):
        text = f"{type(fault).__name__} in {fault.filename}:{fault.lineno}: {fault.msg}"
        return Words(text, text), Words("Correct that line, or install another version of the plugin.", "请修正该行，或安装插件的其他版本。")
    if isinstance(fault, SystemExit):
        reason = Words(f"it calls sys.exit({fault.code!r}) while it is imported", f"导入时调用了 sys.exit({fault.code!r})")
        return reason, Words("Remove the call, or install another version of the plugin.", "请删除该调用，或安装插件的其他版本。")
    if isinstance(fault, ModuleNotFoundError):
        run = f"pip install {(fault.name or '').partition('.')[0]}"
        return Words(f"the module {fault.name!r} is missing", f"缺少模块 {fault.name!r}"), Words(f"Run: {run}", f"请运行：{run}")
    import traceback

    frames = traceback.extract_tb(fault.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    text = f"{type(fault).__name__}: {fault}{place}"
    return Words(text, text), mend


def _load_file(path: Path) -> object:
    import importlib.util

    name = f"_scenarium_dev_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        # As when Python runs a file: its neighbours can be imported.
        sys.path.insert(0, str(path.parent))
    # Compiled here: Python's cache knows a source by the second it was saved in, and ``dev`` loads it again within that.
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


def installed_plugins() -> dict[str, Plugin]:
    """Every plugin by name, from metadata. A name claimed twice is one row whose error names both distributions."""
    entries = entry_points()
    apis = {entry.name: entry.value for entry in entries.select(group=HOOK_API_GROUP)}
    claims: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    generic = {entry.name for entry in entries.select(group=GENERIC)}
    for entry in (*entries.select(group=PLUGINS), *entries.select(group=GENERIC)):
        # An editable install beside a wheel's metadata lists the same claim twice.
        claims.setdefault(entry.name, {}).setdefault(_distribution(entry), entry)
    found = {}
    for name, claimants in sorted(claims.items()):
        (distribution, version), entry = next(iter(claimants.items()))
        plugin = Plugin(name, entry.value, distribution, version, apis.get(name, "1.0"), generic=name in generic)
        found[name] = replace(plugin, error=_clash(plugin, [other for other, _ in claimants]) or _api_fault(plugin))
    return found


def _clash(plugin: Plugin, distributions: Sequence[str]) -> ScenariumError | None:
    if len(distributions) == 1:
        return None
    names = sorted(distributions)
    reason = Words(f"{' and '.join(names)} both claim the name {plugin.name!r}", f"{'、'.join(names)} 都使用了名称 {plugin.name!r}")
    run = f"pip uninstall {names[-1]}"
    return plugin.broken(reason, Words(f"Keep one of them. Run: {run}", f"请只保留其中一个。运行：{run}"))


def _api_fault(plugin: Plugin) -> ScenariumError | None:
    from scenarium.core.hookspecs import HOOK_API

    ours = ".".join(map(str, HOOK_API))
    numbers = re.fullmatch(r"(\d+)\.(\d+)", plugin.hook_api.strip())
    if not numbers:
        reason = Words(f"its hook API {plugin.hook_api!r} is no version such as 1.0", f"其钩子 API {plugin.hook_api!r} 不是 1.0 这样的版本号")
        return plugin.broken(reason, Words("Correct the plugin's entry point in scenarium.hook_api.", "请修正插件在 scenarium.hook_api 中的入口点。"))
    api = (int(numbers[1]), int(numbers[2]))
    if api[0] == HOOK_API[0] and api[1] <= HOOK_API[1]:
        return None
    run = "pip install -U scenarium" if api > HOOK_API else f"pip install -U {plugin.distribution}"
    reason = Words(
        f"it was written for hook API {plugin.hook_api}, this scenarium has {ours}", f"它为钩子 API {plugin.hook_api} 编写，而当前 scenarium 为 {ours}"
    )
    return plugin.broken(reason, Words(f"Run: {run}", f"请运行：{run}"))


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    if not entry.dist:
        return ("unknown", "0")
    metadata = entry.dist.metadata  # parsed anew by every access
    return (metadata["Name"], metadata["Version"])


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
            remedy = Words("Correct the hook's name or arguments: see the hook reference.", "请修正钩子的名称或参数：见钩子参考。")
            raise self.plugin.broken(Words(str(fault), str(fault)), remedy) from fault

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
    """The scenarios of this installation: one for each plugin, one for each table that names a plugin, one for each that was imported."""

    def __init__(self, settings: Settings, plugins: Mapping[str, Plugin] | None = None) -> None:
        self.settings = settings
        self.plugins = {TENSOR_MODEL.name: TENSOR_MODEL, **(installed_plugins() if plugins is None else plugins)}
        self._extensions: dict[str, object] | None = None

    def names(self) -> dict[str, str]:
        """Scenario name to plugin name, without those switched off by ``enabled = false``.

        Raises:
            ScenariumError: SCN-1003: a table's name is nearly that of an installed plugin, so its settings would be lost unseen;
                SCN-5117: the store, which says what was imported, cannot be read.
        """
        tables = self.settings.scenarios()
        found = {**self.imported, **{name: name for name, plugin in self.plugins.items() if not plugin.generic}}
        for name, table in tables.items():
            if "plugin" in table:
                found[name] = str(table["plugin"])
            elif name not in found and table.get("enabled", True):
                origin = self.settings.origin("scenarios", name)
                close = difflib.get_close_matches(name, self.plugins, 1, 0.8)
                if close or origin.kind == "--set":
                    nearest = f"scenarios.{close[0]}" if close else ", ".join(self.plugins) or "-"
                    raise ScenariumError("SCN-1003", field=f"scenarios.{name}", **origin.place, nearest=nearest, name="NAME")
                if origin.kind == "file":
                    found[name] = name  # a row that says what to install; other scenarios go on
        return {name: plugin for name, plugin in sorted(found.items()) if tables.get(name, {}).get("enabled", True)}

    @cached_property
    def imported(self) -> dict[str, str]:
        """The scenarios that were imported into the store, read once: name to plugin."""
        return imported.scenarios(self.settings.store_url)

    def scenario(self, name: str) -> Scenario:
        """The scenario called ``name``; its plugin is imported on first use of ``hook`` or ``config``.

        Raises:
            ScenariumError: SCN-1001 (no such scenario, with the nearest names), SCN-1006 and SCN-1008 (its plugin is not installed),
                SCN-1003, SCN-1004 and SCN-1007 (a table of ``scenarios.toml`` that belongs to no scenario is wrong).
        """
        from scenarium.core.config import check_shared

        check_shared(self.settings)
        plugin = self.plugin(name)
        return Scenario(name, plugin, self.settings, self.extensions)

    def plugin(self, name: str) -> Plugin:
        """The plugin of the scenario called ``name``, from metadata alone.

        Raises:
            ScenariumError: SCN-1001, SCN-1003, SCN-1006, SCN-1008.
        """
        names = self.names()
        if name not in names:
            close = difflib.get_close_matches(name[:100], names, 3, 0.4)
            raise ScenariumError("SCN-1001", name=name, nearest=", ".join(close) or "-")
        if names[name] in self.plugins:
            return self.plugins[names[name]]
        origin = self.settings.origin("scenarios", name, "plugin")
        if origin.kind == "default":
            raise ScenariumError("SCN-1008", **self.settings.origin("scenarios", name).place, name=name, dashed=name.replace("_", "-"))
        raise ScenariumError("SCN-1006", **origin.place, name=name, plugin=names[name], dashed=names[name].replace("_", "-"))

    def serve_config(self, name: str) -> ServeConfig:
        """The ``serve`` section alone, which a gateway may read without importing the plugin.

        Keys that are not the core's are left to the worker, which knows the plugin's own class.
        """
        from scenarium.core.config import ServeConfig

        prefix = ("scenarios", name, "serve")
        table = self.settings.table(*prefix)
        config = self.settings.validate(ServeConfig, prefix, name, ignore=[key for key in table if key not in ServeConfig.model_fields])
        own = "engine" not in table and self.names().get(name) == TENSOR_MODEL.name
        return config.model_copy(update={"engine": "onnx"}) if own else config  # the default of that plugin's own class

    @property
    def extension_plugins(self) -> list[Plugin]:
        """The installed extensions, from metadata alone."""
        return [Plugin(entry.name, entry.value, *_distribution(entry)) for entry in sorted(entry_points(group=EXTENSIONS), key=lambda e: e.name)]

    @property
    def extensions(self) -> dict[str, object]:
        """The installed extensions by name, imported once. One that fails to import stops everything: it may be what masks data."""
        if self._extensions is None:
            self._extensions = {plugin.name: plugin.load() for plugin in self.extension_plugins}
        return self._extensions


def open_registry(path: Path | str | None = None, *, sets: tuple[str, ...] = (), scenario: str | None = None) -> Registry:
    """The registry of this process: installed plugins with file, environment and ``sets``."""
    return Registry(Settings.read(path, sets=sets, scenario=scenario))


def load(name: str, **kwargs: Any) -> Any:
    """A scenario for Python code: ``load("fraud_text").train()``, ``.predict({...})``. See ``scenarium.core.handle``."""
    from scenarium.core.handle import Handle

    return Handle(open_registry(**kwargs).scenario(name))
