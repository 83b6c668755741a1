"""Triton's model repository extension: which models there are, and loading and unloading them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scenarium.core.errors import ScenariumError
from scenarium.gateway.kserve import models

if TYPE_CHECKING:
    from scenarium.gateway.app import Gateway


def index(gateway: Gateway, ready: bool) -> list[dict[str, str]]:
    """Every model with its state, those of untrained scenarios among them; ``ready``: only those that answer."""
    found = []
    served = {model.name: model for model in models.every(gateway)}
    for name, service in gateway.services.items():
        if service.version is None:
            reason = service.fault.title() if service.fault else ""
            found.append({"name": name, "version": "", "state": "LOADING" if service.state == "starting" else "UNAVAILABLE", "reason": reason})
    for name, model in served.items():
        service = model.service
        if models.is_ready(gateway, model):
            found.append({"name": name, "version": model.version, "state": "READY", "reason": ""})
        else:
            reason = service.fault.title() if service.fault else ""
            found.append({"name": name, "version": model.version, "state": "LOADING" if service.state == "starting" else "UNAVAILABLE", "reason": reason})
    return [each for each in found if each["state"] == "READY" or not ready]


async def load(gateway: Gateway, name: str, parameters: Any) -> None:
    """Not yet."""
    raise ScenariumError("SCN-4204", what_en="loading", what_zh="加载")


async def unload(gateway: Gateway, name: str) -> None:
    """Not yet."""
    raise ScenariumError("SCN-4204", what_en="unloading", what_zh="卸载")
