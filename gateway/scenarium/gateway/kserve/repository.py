"""Triton's model repository extension: which models there are, and loading and unloading them.

All models of a scenario are its workers, so they come and go together, whichever of them is named. An unloaded scenario answers nobody, also
not below ``/scenarios``, until it is loaded again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from scenarium.core.errors import ScenariumError
from scenarium.gateway.kserve import models
from scenarium.gateway.memory import NOT_NOW

if TYPE_CHECKING:
    from scenarium.gateway.app import Gateway
    from scenarium.gateway.services import Service

POLL_S = 0.02


def index(gateway: Gateway, ready: bool) -> list[dict[str, str]]:
    """Every model with its state, scenarios without a version among them; ``ready``: only those that answer."""
    found = [_row(name, "", service, False) for name, service in gateway.services.items() if service.version is None]
    found += [_row(model.name, model.version, model.service, models.is_ready(gateway, model)) for model in models.every(gateway)]
    return [each for each in found if each["state"] == "READY" or not ready]


def _row(name: str, version: str, service: Service, ready: bool) -> dict[str, str]:
    state = "READY" if ready else "LOADING" if service.state == "starting" else "UNAVAILABLE"
    return {"name": name, "version": version, "state": state, "reason": "" if ready or not service.fault else service.fault.title()}


async def load(gateway: Gateway, name: str, parameters: Any) -> None:
    """Load a model's scenario and wait until it answers; one that is loaded stays as it is.

    Raises:
        ScenariumError: SCN-4202 (no such model), SCN-4204 (``parameters`` that would change its configuration or files), or why it cannot be loaded.
    """
    service = _service(gateway, name)
    if parameters:
        raise ScenariumError(
            "SCN-4204", what_en="another configuration at load time: set it in scenarios.toml", what_zh="加载时更改配置的功能，请在 scenarios.toml 中设置"
        )
    await service.restore(await asyncio.to_thread(gateway.number, service.name))
    while not service.ready:
        if service.fault:
            raise service.fault
        if service.state == "idle" and not service.loading:
            raise ScenariumError(NOT_NOW, name=service.name)
        await asyncio.sleep(POLL_S)


async def unload(gateway: Gateway, name: str) -> None:
    """Put a model's scenario away, after it has answered what it has accepted.

    Raises:
        ScenariumError: SCN-4202 (no such model).
    """
    await _service(gateway, name).unload()


def _service(gateway: Gateway, name: str) -> Service:
    found = gateway.services.get(name)
    return found or models.find(gateway, name).service
