"""Scenarios as the models of the OpenAI API. What a scenario can be asked is told by the schemas in its manifest:

- ``chat``: its request has ``messages``, its answer ``text``, ``finish_reason`` and ``usage``;
- ``completions``: its request has ``prompt``, its answer the same;
- ``embeddings``: its request has ``input`` (one text), its answer ``embedding`` (numbers) and ``usage``.

A scenario with ``serve.upstream`` can be asked all three; what its upstream does not know, that says itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from scenarium.core.errors import ScenariumError

if TYPE_CHECKING:
    from scenarium.core.manifest import Manifest
    from scenarium.gateway.app import Gateway
    from scenarium.gateway.services import Service

Form = Literal["chat", "completions", "embeddings"]
_TEXT = frozenset(("text", "finish_reason", "usage"))
FORMS: dict[Form, tuple[str, frozenset[str]]] = {
    "chat": ("messages", _TEXT),
    "completions": ("prompt", _TEXT),
    "embeddings": ("input", frozenset(("embedding", "usage"))),
}
"""The field of the request and those of the answer."""


def fields(manifest: Manifest) -> frozenset[str]:
    """The fields of its request."""
    return frozenset(manifest.request_schema.get("properties", ()))


def forms(manifest: Manifest) -> set[Form]:
    """What a version can be asked."""
    asked, told = fields(manifest), frozenset(manifest.response_schema.get("properties", ()))
    return {form for form, (field, answer) in FORMS.items() if field in asked and answer <= told}


def passed_on(gateway: Gateway, name: str) -> Service | None:
    """The scenario of that name where an upstream answers for it: whatever version it has, or none."""
    service = gateway.services.get(name)
    return service if service and service.config.upstream else None


def find(gateway: Gateway, name: str, form: Form | None = None) -> tuple[Service, Manifest]:
    """The scenario of that name, and the manifest of the version that is served; ``form``: what it must be able to answer.

    Raises:
        ScenariumError: SCN-4302 (no such model), SCN-4303 (it cannot be asked this).
    """
    service = gateway.services.get(name)
    if service is None or service.version is None or not (found := forms(service.version.manifest)):
        raise ScenariumError("SCN-4302", field="model", name=name)
    if form and form not in found:
        raise ScenariumError("SCN-4303", field="model", name=name, form=form, forms=", ".join(sorted(found)))
    return service, service.version.manifest


def every(gateway: Gateway) -> Iterator[str]:
    """Names of all models."""
    return (name for name, service in gateway.services.items() if service.config.upstream or (service.version and forms(service.version.manifest)))


def shown(gateway: Gateway, name: str) -> dict[str, Any]:
    """The API's model object.

    Raises:
        ScenariumError: SCN-4302.
    """
    if passed_on(gateway, name):
        return {"id": name, "object": "model", "created": 0, "owned_by": "upstream"}
    manifest = find(gateway, name)[1]
    return {"id": name, "object": "model", "created": int(manifest.created.timestamp()), "owned_by": manifest.plugin.distribution}
