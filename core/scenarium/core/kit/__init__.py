"""The plugin author's kit: check a plugin, begin a new one, serve one while it is written.

``ScenarioConformance`` needs pytest and is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scenarium.core.kit.pytest_plugin import ScenarioConformance as ScenarioConformance

__all__ = ["ScenarioConformance"]


def __getattr__(name: str) -> Any:
    if name != "ScenarioConformance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from scenarium.core.kit.pytest_plugin import ScenarioConformance

    return ScenarioConformance
