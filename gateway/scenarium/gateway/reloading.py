"""Changed settings and newly installed plugins, taken over by a running gateway: SIGHUP, or ``scenarium reload``.

Nothing is lost on the way: settings of the queue take effect at once; what a worker knows (engine, threads, …) needs new workers, which
take over when they are ready; a scenario that is gone finishes what it has accepted. Settings that are wrong as a whole change
nothing; those of one scenario leave that one as it is.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from scenarium.core.config import ServeConfig
from scenarium.core.errors import ScenariumError
from scenarium.core.registry import Registry
from scenarium.gateway import cache, logs

if TYPE_CHECKING:
    from scenarium.gateway.app import Gateway
    from scenarium.gateway.services import Service

AT_ONCE = {"deadline_ms", "queue_size", "max_body_bytes", "max_delay_ms", "required", "keep_warm", "hang_s", "probe_s", "cache_size", "cache_ttl_s"}
AT_ONCE |= {"upstream", "upstream_model", "upstream_key_env"}
"""Settings of ``serve`` that no worker knows."""


async def reload(gateway: Gateway, registry: Registry) -> dict[str, list[str]]:
    """Serve what ``registry`` says from now on. Returns the names of the scenarios by what became of them.

    Raises:
        ScenariumError: SCN-1003 and others: the settings are wrong as a whole; nothing changed.
    """
    names = await asyncio.to_thread(registry.names)
    before, gateway.registry = gateway.registry, registry
    told: dict[str, list[str]] = {"added": [], "removed": [], "changed": [], "restarted": [], "refused": []}
    for name in [name for name in gateway.services if name not in names]:
        gateway.leave(gateway.services.pop(name))
        told["removed"].append(name)
    added = [name for name in names if name not in gateway.services]
    for name, service in list(gateway.services.items()):
        told_of = await _change(gateway, service, before, registry, names[name])
        if told_of:
            told[told_of].append(name)
    for name in added:
        service = gateway.services[name] = gateway.make_service(name, names[name])
        told["added"].append(name)
        if service.wrong is None:
            gateway.spawn(service.load(await asyncio.to_thread(gateway.number, name)))
    logs.event("info", "reloaded", **told)
    return told


async def _change(gateway: Gateway, service: Service, before: Registry, registry: Registry, plugin: str) -> str | None:
    """One scenario that was there before."""
    name = service.name
    try:
        config = registry.serve_config(name)
        if service.version:
            cache.check(name, config, service.version.manifest)
    except ScenariumError as fault:
        service.note_fault(fault, "settings_refused")
        return "refused"
    moved = service.plugin != plugin or before.plugins.get(service.plugin) != registry.plugins.get(plugin)
    different = {field for field in ServeConfig.model_fields if getattr(config, field) != getattr(service.config, field)}
    service.registry, service.plugin = registry, plugin
    mended, service.wrong = service.wrong is not None, None
    if not (moved or different or mended):
        return None
    service.configure(config)
    if mended or service.served is None:
        gateway.spawn(service.load(await asyncio.to_thread(gateway.number, name)))
    elif moved or different - AT_ONCE:
        gateway.spawn(service.reload(service.served))
        return "restarted"
    return "changed"
