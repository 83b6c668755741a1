"""Clients that ask a gateway's ``unit`` without a pause while something happens to it."""

from __future__ import annotations

import threading
from typing import Any

import httpx


class Load:
    """So many clients, each over a connection of its own, from entering to leaving."""

    def __init__(self, gateway: Any, clients: int = 4, **fields: Any) -> None:
        self.gateway, self.fields = gateway, fields
        self.answers: list[httpx.Response] = []
        self.faults: list[Exception] = []
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        with httpx.Client(base_url=self.gateway.url, timeout=30) as client:
            while not self.stopped.is_set():
                try:
                    self.answers.append(client.post("/scenarios/unit/predict", json={"text": "x", **self.fields}))
                except httpx.HTTPError as fault:
                    self.faults.append(fault)
                    return

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def last(self) -> str | None:
        """The version that answered last."""
        return self.answers[-1].headers["X-Scenarium-Version"] if self.answers else None

    def checked(self, *versions: int) -> None:
        """No request was lost, and each answer (``one`` of version 1, ``two`` of version 2) is that of the version its header names, among ``versions``."""
        assert not self.faults
        assert {answer.status_code for answer in self.answers} == {200}
        words = {"1": "one", "2": "two"}
        assert all(words[answer.headers["X-Scenarium-Version"]] == answer.json()["answer"] for answer in self.answers)
        assert {int(answer.headers["X-Scenarium-Version"]) for answer in self.answers} == set(versions)
