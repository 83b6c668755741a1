"""Starts a gateway over single-file plugins, or over the installed ones (null): ``run_gateway.py STORE PLUGINS_JSON SETS_JSON [spawn]``.

A ``scenarios.toml`` beside the store is read too, and again on SIGHUP.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scenarium.core.config import GatewayConfig
from scenarium.core.registry import Plugin, Registry
from scenarium.core.settings import Settings
from scenarium.core.store import Store
from scenarium.gateway import zygotes
from scenarium.gateway.server import serve

if __name__ == "__main__":
    zygotes.FORK = zygotes.FORK and "spawn" not in sys.argv[4:]
    store, plugins, sets = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])

    def read() -> Registry:
        file = Path(store).parent / "scenarios.toml"
        settings = Settings.read(file if file.exists() else None, environ={"SCENARIUM_STORE": store}, sets=[*sets, "gateway.port=0"])
        return Registry(settings, plugins and {name: Plugin(name, target, f"scenarium-{name}", "0.1.0") for name, target in plugins.items()})

    registry = read()
    sys.exit(serve(registry, Store(store), registry.settings.validate(GatewayConfig, ("gateway",), "gateway"), again=read))
