"""Scenarios that exist since something was imported into the store: a small file beside their versions names the plugin that serves them.

So they are listed and served without a table in ``scenarios.toml``. A file of its own rather than the manifests, so that a scenario of a plugin that
was uninstalled, or whose table was removed, does not come back by itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from scenarium.core.errors import ScenariumError

if TYPE_CHECKING:
    from scenarium.core.store import Store

FILE = "imported.json"


def note(store: Store, name: str, plugin: str) -> None:
    """Let ``name`` be a scenario of ``plugin`` from now on."""
    store.write(store.path(name, FILE), json.dumps({"plugin": plugin}).encode())


def scenarios(url: str) -> dict[str, str]:
    """Scenario to plugin, of everything that was imported into the store at ``url``.

    Raises:
        ScenariumError: SCN-5117: the store cannot be read.
    """
    try:
        if "://" not in url:  # read straight: opening fsspec takes longer than `scenarium list`
            return {path.parent.name: _plugin(path.read_bytes()) for path in sorted(Path(url).glob(f"scenarios/*/{FILE}"))}
        from scenarium.core.store import Store

        store = Store(url)
        paths: list[str] = sorted(store.fs.glob(store.path("*", FILE)))
        return {path.split("/")[-2]: _plugin(store.fs.cat_file(path)) for path in paths}
    except ScenariumError:
        raise
    except Exception as fault:  # whatever a file system or a network has in store
        raise ScenariumError("SCN-5117", store=url, reason=f"{type(fault).__name__}: {fault}") from fault


def _plugin(content: bytes) -> str:
    return str(json.loads(content)["plugin"])
