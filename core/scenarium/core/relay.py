"""One small pluggy manager per scenario: defaults, extensions, and that one plugin.

So a plugin implements what differs and never sees another scenario's call, and an extension can wrap any hook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pluggy

from scenarium.core import hookspecs
from scenarium.core.defaults import Defaults

HOOKS: tuple[str, ...] = tuple(name for name, value in vars(hookspecs).items() if hasattr(value, "scenarium_spec"))
"""Names of all hooks, in the order of ``hookspecs``."""


def make_relay(plugin: object, name: str, extensions: Mapping[str, object] | None = None) -> pluggy.HookRelay:
    """Join defaults, ``extensions`` (by name) and ``plugin`` into the relay through which the scenario's hooks are called.

    Raises:
        pluggy.PluginValidationError: an implementation names an unknown hook or an argument that the hook does not have.
    """
    manager = pluggy.PluginManager("scenarium")
    manager.add_hookspecs(hookspecs)
    defaults = Defaults()
    defaults.hook = manager.hook
    manager.register(defaults, "defaults")
    for label, extension in (extensions or {}).items():
        manager.register(extension, label)
    manager.register(plugin, f"plugin {name}")
    manager.check_pending()
    return manager.hook


def direct(hook: pluggy.HookCaller) -> Callable[..., Any]:
    """What ``hook`` (one of the first result) answers, without pluggy's checks of each call, for loops that call it for every item or step.

    A hook with a wrapper is returned as it is; implementations registered later are not seen.
    """
    found = hook.get_hookimpls()
    if any(each.wrapper or each.hookwrapper for each in found):
        return hook
    calls = [(each.function, each.argnames) for each in reversed(found)]

    def call(**values: Any) -> Any:
        for function, names in calls:
            answer = function(*map(values.__getitem__, names))
            if answer is not None:
                return answer
        return None

    return call


def implemented(plugin: object) -> list[str]:
    """Names of the hooks that ``plugin`` itself implements."""
    return [name for name in HOOKS if hasattr(getattr(plugin, name, None), "scenarium_impl")]
