"""What keys, limits and the audit log cost one request, in process: ``python -m benchmarks.gateway_admission``.

An endpoint that answers at once is called through the step that every hot route goes through (``Endpoint.__call__``), without and with
keys, limits and audit log, in turn; the cheapest of many rounds counts, and the differences are the cost.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from scenarium.core.config import GatewayConfig
from scenarium.core.registry import Registry
from scenarium.core.settings import Settings
from scenarium.core.store import Store
from scenarium.gateway.app import Gateway
from scenarium.gateway.audit import Audit
from scenarium.gateway.keys import Rate
from scenarium.gateway.predict import JSON, Endpoint, read_body, send_body
from scenarium.gateway.services import Service

BODY = b'{"x": [' + b", ".join([b"0.123456"] * 64) + b"]}"
ANSWER = b'{"label": "calm", "score": 0.731}'
ROUNDS, CALLS = 40, 250


class AtOnce(Endpoint):
    """Reads the body and answers."""

    async def answer(self, service: Any, call: Any, receive: Any, send: Any) -> None:
        """Answer."""
        await read_body(receive, 1 << 20, call.length, "toy")
        await send_body(send, 200, [JSON, (b"x-request-id", call.rid_header), (b"x-scenarium-version", b"1")], ANSWER)


def endpoint(folder: Path, *, key: bool, limits: bool, audit: bool) -> tuple[AtOnce, list[tuple[bytes, bytes]]]:
    """The endpoint of a gateway of its own, and the headers of a request to it."""
    keys = folder / f"{key}-{limits}-{audit}.sqlite"
    gateway = Gateway(Registry(Settings.read(environ={}), {}), Store(str(folder / "store")), GatewayConfig(keys=str(keys)))
    gateway.services["toy"] = cast(Service, object())  # the endpoint asks for it and does not use it
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
    if key:
        assert gateway.admission.keyring.file
        _, text = gateway.admission.keyring.file.create(rate=Rate(10**9, 60) if limits else None, daily=10**9 if limits else None)
        headers.append((b"authorization", f"Bearer {text}".encode()))
    gateway.admission.open()
    if audit:
        gateway.audit = Audit(folder / "audit.jsonl")
    return AtOnce(gateway), headers


async def once(made: AtOnce, headers: list[tuple[bytes, bytes]]) -> float:
    """Microseconds of one call."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/scenarios/toy/predict", "path_params": {"name": "toy"}, "headers": headers}
    began = time.perf_counter()
    for _ in range(CALLS):
        await made(scope, receive, send)
    took = (time.perf_counter() - began) / CALLS * 1e6
    assert all(message.get("status", 200) == 200 for message in sent)
    return took


async def main() -> None:
    """Measure in turn and print."""
    with tempfile.TemporaryDirectory() as folder:
        choices = {
            "nothing": {"key": False, "limits": False, "audit": False},
            "key": {"key": True, "limits": False, "audit": False},
            "key, rate, quota": {"key": True, "limits": True, "audit": False},
            "key, rate, quota, audit": {"key": True, "limits": True, "audit": True},
        }
        made = {name: endpoint(Path(folder), **choice) for name, choice in choices.items()}
        best = dict.fromkeys(made, float("inf"))
        for _ in range(ROUNDS):
            for name, (each, headers) in made.items():
                best[name] = min(best[name], await once(each, headers))
                await asyncio.sleep(0.06)  # let the audit log's thread do its part outside the measured time, as it does between requests
        for name, took in best.items():
            print(f"{name:<26} {took:6.1f} µs   + {took - best['nothing']:5.1f} µs")
        for each, _ in made.values():
            if each.gateway.audit:
                each.gateway.audit.close()


if __name__ == "__main__":
    asyncio.run(main())
