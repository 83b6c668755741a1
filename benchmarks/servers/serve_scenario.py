"""Our gateway in front of one scenario: ``serve_scenario.py PORT STORE KEYS NAME PLUGIN DISTRIBUTION [SETTING=VALUE …]``: settings of ``serve``,
or of the gateway as ``gateway.SETTING``."""

from __future__ import annotations

import sys

from scenarium.core.config import GatewayConfig
from scenarium.core.registry import Plugin, Registry
from scenarium.core.settings import Settings
from scenarium.core.store import Store
from scenarium.gateway.server import serve

if __name__ == "__main__":
    port, store, keys, name, plugin, distribution, *sets = sys.argv[1:]
    gateway = dict(each.removeprefix("gateway.").split("=", 1) for each in sets if each.startswith("gateway."))
    settings = Settings.read(environ={}, sets=[f"serve.{each}" for each in sets if not each.startswith("gateway.")], scenario=name)
    registry = Registry(settings, {name: Plugin(name, plugin, distribution, "0.1.0")})
    sys.exit(serve(registry, Store(store), GatewayConfig.model_validate({"port": port, "keys": keys, "jobs": None, **gateway})))
