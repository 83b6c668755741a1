"""What must hold before a stored version may serve: the plugin can read it, and it still answers its sample as it did.

A library or plugin that was changed under a version is found here, before a client sees its answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import ValidationError

from scenarium.core.difference import difference
from scenarium.core.errors import ScenariumError, Words
from scenarium.core.manifest import Manifest
from scenarium.core.reasons import reason

if TYPE_CHECKING:
    from scenarium.core.config import ScenarioConfig
    from scenarium.core.registry import Scenario
    from scenarium.core.runtime import Runtime

PICTURES = ("iVBORw0KGgo", "/9j/", "UklGR")
"""How a PNG, a JPEG and a WebP begin in base64. Their bytes depend on the encoder's release, so they are not compared."""


def check_plugin(scenario: Scenario, manifest: Manifest) -> None:
    """Refuse a version of another plugin, or of a release that the installed one cannot read. A single file has no release.

    Raises:
        ScenariumError: SCN-5003 with the pip line that helps.
    """
    plugin, made = scenario.plugin, manifest.plugin
    if plugin.target.endswith(".py"):
        return
    if plugin.name != made.name:
        raise _unloadable(scenario, manifest, Words(f"it belongs to plugin {made.name!r}", f"它属于插件 {made.name!r}"))
    try:
        loadable = SpecifierSet(made.loadable).contains(plugin.version, prereleases=True)
    except InvalidSpecifier:
        loadable = made.version == plugin.version
    if not loadable:
        raise _unloadable(scenario, manifest, Words(f"it can be loaded by releases {made.loadable}", f"它只能由 {made.loadable} 的发行版加载"))


def stored_config(scenario: Scenario, manifest: Manifest) -> ScenarioConfig:
    """The settings that a version was trained with, and ``serve`` as it is configured now (an optimised version has its own engine).

    Raises:
        ScenariumError: SCN-5003: the installed plugin no longer takes these settings.
    """
    try:
        return type(scenario.config).model_validate({**manifest.config, "serve": manifest.serving(scenario.config.serve).model_dump()})
    except ValidationError as fault:
        first = fault.errors(include_url=False)[0]
        field, why = ".".join(map(str, first["loc"])), reason(first)
        raise _unloadable(scenario, manifest, Words(f"its setting {field!r}: {why.en}", f"其设置 {field!r}：{why.zh}")) from None


def _unloadable(scenario: Scenario, manifest: Manifest, reason: Words) -> ScenariumError:
    made, plugin = manifest.plugin, scenario.plugin
    return ScenariumError(
        "SCN-5003",
        name=scenario.name,
        version=manifest.version,
        made=f"{made.distribution} {made.version}",
        installed=f"{plugin.distribution} {plugin.version}",
        reason=reason,
        requirement=f"{made.distribution}{made.loadable}",
    )


def check_answer(runtime: Runtime, manifest: Manifest) -> None:
    """Answer the stored sample again and compare, where the scenario is pure. Also the first, slow pass through the model.

    Raises:
        ScenariumError: SCN-5005: names what changed and the pip line that helps.
    """
    if not manifest.pure or manifest.answer is None:
        return
    try:
        answer = runtime.predict([runtime.schema.request.model_validate_json(json.dumps(manifest.sample))])[0]
    except ValidationError as fault:
        raise _refusal(manifest, f"the request class refuses it: {fault.errors(include_url=False)[0]['msg']}") from fault
    if isinstance(answer, Exception):
        raise _refusal(manifest, str(answer).partition("\n")[0]) from answer
    if found := difference(_without_pictures(manifest.answer), _without_pictures(answer.model_dump(mode="json")), manifest.tolerance):
        raise _refusal(manifest, found)


def _without_pictures(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_pictures(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_pictures(inner) for inner in value]
    return "picture" if isinstance(value, str) and value.startswith(PICTURES) else value


def changed_packages(manifest: Manifest) -> dict[str, tuple[str, str | None]]:
    """Distribution to (version when it was made, version now), for those that differ. None: no longer installed."""
    found: dict[str, tuple[str, str | None]] = {}
    for name, before in manifest.packages.items():
        try:
            now: str | None = installed_version(name)
        except PackageNotFoundError:
            now = None
        if now != before:
            found[name] = (before, now)
    return found


def _refusal(manifest: Manifest, found: str) -> ScenariumError:
    changed = changed_packages(manifest)
    listed = ", ".join(f"{name} {before} -> {now or '-'}" for name, (before, now) in changed.items())
    pins = " ".join(f"'{name}=={before}'" for name, (before, _) in changed.items())
    if changed:
        remedy = Words(
            f"Run: pip install {pins} – or train again: scenarium train {manifest.scenario}",
            f"请运行：pip install {pins}，或重新训练：scenarium train {manifest.scenario}",
        )
    else:
        remedy = Words(
            f"No package changed: the plugin's own code, serve.engine or the hardware did. Train again: scenarium train {manifest.scenario}",
            f"软件包没有变化：改变的是插件代码、serve.engine 或硬件。请重新训练：scenarium train {manifest.scenario}",
        )
    return ScenariumError(
        "SCN-5005",
        name=manifest.scenario,
        version=manifest.version,
        difference=found,
        changed=listed or Words("no package", "无软件包变化"),
        remedy=remedy,
    )
