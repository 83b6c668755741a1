"""Mixed load on a gateway that serves ``unit`` scenarios: every kind of request, each checked to have its own answer.

Every request carries a text of its own, which its answer must repeat. So a crossed answer is seen, and each request is counted by how it
ended: answered, failed (with the code, for the benchmark to judge), or lost, where neither an answer nor an error came.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.gateway.load import Answer, Client, Unanswered

PATIENCE_S = 90.0
"""Beyond every deadline: what is not answered then is lost."""
IMPURE = "once"
KINDS = {"single": 50, "deadline": 8, "raises": 4, "cancelled": 8, "large": 2, "batch": 8, "stream": 12, "job": 8}
"""What is asked, and how often of a hundred."""


class Failed(NamedTuple):
    """A request that ended with an error that it did not ask for."""

    kind: str
    scenario: str
    began: float
    ended: float
    status: int
    code: str


class Load:
    """Clients that ask until they are told to stop, and the book of what became of their requests."""

    def __init__(self, url: str, scenarios: Sequence[str], seed: int) -> None:
        self.url, self.scenarios, self.seed = url, scenarios, seed
        self.sent: Counter[str] = Counter()
        self.right: Counter[str] = Counter()
        self.own: Counter[str] = Counter()
        """Ended with the very error that they provoked."""
        self.failed: list[Failed] = []
        self.lost: list[str] = []
        self.crossed: list[str] = []
        self.stopping = asyncio.Event()
        self._count = 0

    async def run(self, clients: int, per_second: float) -> None:
        """Ask ``per_second`` times a second in all, until ``stopping`` and all that is open has ended."""
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._client(random.Random(f"{self.seed} {number}"), per_second / clients))

    async def _client(self, rng: random.Random, rate: float) -> None:
        client = Client(self.url)
        while not self.stopping.is_set():
            await asyncio.sleep(rng.expovariate(rate))
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            await getattr(self, kind)(client, rng.choice(self.scenarios), rng)
        if left := await client.close():
            self.crossed.append(f"{len(left)} bytes that nobody had asked for")

    def text(self, kind: str) -> str:
        """A text that no other request has."""
        self._count += 1
        self.sent[kind] += 1
        return f"{kind}-{self._count}"

    # ── kinds of requests ─────────────────────────────────────────────────────────────────────────────────────────────

    async def single(self, client: Client, name: str, rng: random.Random, **more: Any) -> Answer | None:
        """One prediction, of a random priority."""
        priority = rng.choice((b"high", b"normal", b"normal", b"low"))
        body = {"do": "sleep", "seconds": rng.choice((0, 0, 0.002, 0.01)), **more}
        return await self.predict("single", client, name, body, b"X-Scenarium-Priority: " + priority)

    async def large(self, client: Client, name: str, rng: random.Random) -> None:
        """One prediction with a body of up to 400 kB."""
        await self.predict("large", client, name, {}, size=rng.randrange(100_000, 400_000))

    async def deadline(self, client: Client, name: str, rng: random.Random) -> None:
        """One prediction that may be too late."""
        await self.predict("deadline", client, name, {"do": "sleep", "seconds": 0.01}, b"X-Scenarium-Deadline-Ms: %d" % rng.randrange(2, 60), own="SCN-4007")

    async def raises(self, client: Client, name: str, rng: random.Random) -> None:
        """One prediction at which the plugin raises. What is not pure is never run twice, so there it would fail its whole batch."""
        name = rng.choice([each for each in self.scenarios if each != IMPURE])
        await self.predict("raises", client, name, {"do": "raise"}, own="SCN-4003")

    async def cancelled(self, client: Client, name: str, rng: random.Random) -> None:
        """A client that leaves."""
        body = json.dumps({"text": self.text("cancelled"), "do": "sleep", "seconds": 0.02}).encode()
        fresh = Client(self.url)
        await fresh.send(f"/scenarios/{name}/predict", body)
        await asyncio.sleep(rng.uniform(0, 0.03))
        await fresh.close(abort=True)
        self.own["cancelled"] += 1

    async def batch(self, client: Client, name: str, rng: random.Random) -> None:
        """Many predictions as JSON lines."""
        text, size = self.text("batch"), rng.randrange(2, 40)
        wanted = [f"{text}/{n}" for n in range(size)]
        began = time.monotonic()
        answer = await self.asked(client, text, f"/scenarios/{name}/predict/batch", b"\n".join(json.dumps({"text": each}).encode() for each in wanted))
        if answer is None:
            return
        if answer.status != 200:
            self.fail("batch", name, began, answer.status, answer.code)
            return
        found = [json.loads(line) for line in answer.body.splitlines()]
        if len(found) != size or any(each.get("text", one) != one for each, one in zip(found, wanted, strict=True)):
            self.crossed.append(text)
        elif errors := [each for each in found if "text" not in each]:
            self.fail("batch", name, began, errors[0]["status"], errors[0]["code"])
        else:
            self.right["batch"] += 1

    async def stream(self, client: Client, name: str, rng: random.Random) -> None:
        """A streamed answer."""
        text, count = self.text("stream"), rng.randrange(1, 12)
        began = time.monotonic()
        answer = await self.asked(client, text, f"/scenarios/{name}/stream", json.dumps({"text": text, "n": count, "seconds": 0.01}).encode())
        if answer is None:
            return
        if answer.status != 200:
            self.fail("stream", name, began, answer.status, answer.code)
            return
        events = [event for event in answer.body.decode().split("\n\n") if event]
        parts = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
        if parts != [{"part": n, "text": text} for n in range(len(parts))]:
            self.crossed.append(text)
        elif events[-1].startswith("event: error"):
            problem = json.loads(events[-1].partition("data: ")[2])
            self.fail("stream", name, began, problem["status"], problem["code"])
        elif len(parts) != count:
            self.lost.append(f"{text}: {len(parts)} of {count} parts")
        else:
            self.right["stream"] += 1

    async def job(self, client: Client, name: str, rng: random.Random) -> None:
        """A job, and its result."""
        text = self.text("job")
        began = time.monotonic()
        body = json.dumps({"text": text, "do": "sleep", "seconds": rng.choice((0, 0.01, 0.05))}).encode()
        made = await self.asked(client, text, f"/scenarios/{name}/jobs", body, b"Idempotency-Key: " + text.encode())
        if made is None:
            return
        if made.status != 202:
            self.fail("job", name, began, made.status, made.code)
            return
        url = made.json["url"]
        while time.monotonic() < began + PATIENCE_S:
            await asyncio.sleep(0.2)
            told = await self.asked(client, text, url)
            if told is None:
                return
            if told.status == 200 and told.json["ended"]:
                result = await self.asked(client, text, f"{url}/result")
                if result is not None:
                    self.check("job", name, began, text, result)
                return
        self.lost.append(f"{text}: accepted, and not ended after {PATIENCE_S:.0f} s")

    # ── the book ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def predict(self, kind: str, client: Client, name: str, body: dict[str, Any], *more: bytes, own: str = "", size: int = 0) -> Answer | None:
        """One prediction; ``own`` is the error that it may provoke itself."""
        text = self.text(kind).ljust(size, "x")
        began = time.monotonic()
        answer = await self.asked(client, text[:40], f"/scenarios/{name}/predict", json.dumps({"text": text, **body}).encode(), *more)
        if answer is not None:
            self.check(kind, name, began, text, answer, own)
        return answer

    async def asked(self, client: Client, text: str, path: str, body: bytes | None = None, *more: bytes) -> Answer | None:
        """The answer to this very request, else None and a line in the book."""
        try:
            answer = await asyncio.wait_for(client.ask(path, body, *more, b"X-Request-Id: " + text.encode()), PATIENCE_S)
        except (Unanswered, TimeoutError) as fault:
            self.lost.append(f"{text}: {type(fault).__name__} {fault} at {path}")
            await client.close(abort=True)
            return None
        if answer.headers.get(b"x-request-id") != text.encode():
            self.crossed.append(text)
            return None
        return answer

    def check(self, kind: str, name: str, began: float, text: str, answer: Answer, own: str = "") -> None:
        """Put a prediction's end into the book."""
        if answer.status == 200:
            if answer.json["text"] == text:
                self.right[kind] += 1
            else:
                self.crossed.append(text[:40])
        elif own and answer.code == own:
            self.own[kind] += 1
        else:
            self.fail(kind, name, began, answer.status, answer.code)

    def fail(self, kind: str, name: str, began: float, status: int, code: str) -> None:
        """An error that the request did not ask for."""
        self.failed.append(Failed(kind, name, began, time.monotonic(), status, code))
