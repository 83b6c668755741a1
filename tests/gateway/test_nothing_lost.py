"""No accepted request is lost: at least 10 000 of them under constant load while each of the events happens, with real processes.

Each request has a text of its own, which its answer must repeat, and a request id, which must come back with it. A request is accepted
when the gateway has read it; one that is accepted is run at most once more than it is answered, and never without an answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.gateway.load import Client, Unanswered

TOTAL = 10_000
CLIENTS = 24
PATIENCE_S = 90.0
"""For all of it: a request that never ends is lost."""
TABLE = "[scenarios.unit.serve]\nworkers = {workers}\nqueue_size = {queue}\nthreads = {threads}\n"

pytestmark = pytest.mark.slow


class Load:
    """Clients that ask one after another, each over a connection of its own, until ``total`` were answered and the event is over."""

    def __init__(self, gateway, total=TOTAL, **body):
        self.gateway, self.total, self.body = gateway, total, body
        self.sent = self.answered = 0
        self.versions = Counter()
        self.wrong = []
        """What was answered otherwise than it should be."""
        self.torn = {}
        """Text of a request to what had come of its answer when its connection ended."""
        self.over = threading.Event()
        self.refused = threading.Event()
        """Nobody listens any more."""

    def reached(self, count):
        """Wait until so many were answered."""
        while self.answered < count and not self.refused.is_set():
            time.sleep(0.005)
        assert not self.refused.is_set()

    def under(self, event):
        """Run ``event`` once a tenth was answered; the load goes on for a while after its end."""

        def happen():
            try:
                self.reached(self.total // 10)
                return event(self)
            finally:
                self.total = max(self.total, self.answered + 500)
                self.over.set()

        async def both():
            happening = asyncio.create_task(asyncio.to_thread(happen))
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await asyncio.gather(*(self.client(number) for number in range(CLIENTS)))
                    return await happening
            finally:
                self.refused.set()

        return asyncio.run(both())

    def path(self, number):
        return "/scenarios/unit/predict"

    async def client(self, number):
        client = Client(self.gateway.url)
        while (self.answered < self.total or not self.over.is_set()) and not self.refused.is_set():
            self.sent += 1
            text = f"t{self.sent}"
            try:
                answer = await client.ask(self.path(self.sent), json.dumps({"text": text, **self.body}).encode(), b"X-Request-Id: " + text.encode())
            except Unanswered as fault:
                self.torn[text] = fault.args[0]
                self.refused.set()
                return
            found = answer.json
            if answer.status != 200 or found["text"] != text or answer.headers[b"x-request-id"] != text.encode():
                self.wrong.append((text, answer))
            self.versions[int(answer.headers[b"x-scenarium-version"])] += 1
            self.answered += 1
        assert await client.close() == b"", "an answer that nobody asked for"

    def lost_nothing(self):
        assert self.wrong == []
        assert self.torn == {}
        assert self.answered == self.sent >= TOTAL
        metrics = self.gateway.client.get("/metrics").text
        ok = [float(line.split()[-1]) for line in metrics.splitlines() if line.startswith('scenarium_requests_total{outcome="ok"')]
        self.gateway.answered_before = getattr(self.gateway, "answered_before", 0) + self.answered
        assert sum(ok) == self.gateway.answered_before, "each ended once"


@pytest.fixture(scope="module")
def gateway(shared_lab):
    """A gateway for the events that it outlives."""
    lab = shared_lab
    lab.publish("unit", settings={"model.answer": "first"})
    lab.publish("unit", settings={"model.answer": "second"}, alias=False)
    lab.publish("other", "unit")
    write(lab)
    found = lab.start({"unit": "unit"})
    found.ready("unit")
    return found


def write(lab, more="", **settings):
    (lab.folder / "scenarios.toml").write_text(TABLE.format(**{"workers": 1, "queue": 256, "threads": 1} | settings) + more)


def workers(gateway):
    return [worker["pid"] for worker in gateway.client.get("/scenarios/unit").json()["workers"] if worker["ready"]]


def zygotes(gateway):
    task = Path(f"/proc/{gateway.popen.pid}/task/{gateway.popen.pid}/children")
    return [int(pid) for pid in task.read_text().split() if b"zygote" in Path(f"/proc/{pid}/cmdline").read_bytes() and int(pid) not in workers(gateway)]


def restarted(lab, gateway, before):
    lab.until(lambda: (now := workers(gateway)) and not set(now) & set(before))


def test_reload_by_the_command(shared_lab, gateway):
    def event(load):
        for threads in (2, 1, 2):
            before = workers(gateway)
            write(shared_lab, threads=threads)
            command = [sys.executable, "-m", "scenarium.core.cli", "reload", "--url", gateway.url]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            restarted(shared_lab, gateway, before)

    load = Load(gateway)
    load.under(event)
    load.lost_nothing()


def test_reload_by_a_signal_with_changed_settings(shared_lab, gateway):
    def event(load):
        changes = (
            ({"threads": 1}, "", "restarted", "unit"),
            ({"threads": 1, "queue": 128}, "", "changed", "unit"),
            ({"threads": 1, "queue": 128}, '[scenarios.other]\nplugin = "unit"\n', "added", "other"),
            ({"threads": 1, "queue": 128, "workers": 2}, "", "removed", "other"),
            ({"threads": 1, "workers": 1}, "", "restarted", "unit"),
        )
        for settings, more, what, name in changes:
            write(shared_lab, more, **settings)
            seen = len([each for each in gateway.events if each["event"] == "reloaded"])
            os.kill(gateway.popen.pid, signal.SIGHUP)
            told = shared_lab.until(lambda seen=seen: [each for each in list(gateway.events) if each["event"] == "reloaded"][seen:])
            assert name in told[0][what]
            shared_lab.until(lambda count=settings.get("workers", 1): len(workers(gateway)) == count)

    load = Load(gateway)
    load.under(event)
    load.lost_nothing()


@pytest.mark.parametrize(("action", "number"), [("promote", 2), ("rollback", 1)])
def test_another_version(shared_lab, gateway, action, number):
    def event(load):
        shared_lab.store.set_alias("unit", "production", number, "test", action=action)
        shared_lab.until(lambda: gateway.client.get("/scenarios/unit").json()["version"] == number)

    load = Load(gateway)
    load.under(event)
    load.lost_nothing()
    assert min(load.versions[1], load.versions[2]) > 300


def test_a_dead_worker(shared_lab, gateway):
    def event(load):
        for _ in range(3):
            before = workers(gateway)
            os.kill(before[0], signal.SIGKILL)
            restarted(shared_lab, gateway, before)
            load.reached(load.answered + 500)  # whoever was in that batch has been run again
        return 3

    load = Load(gateway)
    killed = load.under(event)
    load.lost_nothing()
    details = shared_lab.until(lambda: (found := gateway.client.get("/scenarios/unit").json())["last_fault"] and found)
    assert "SIGKILL" in details["last_fault"]["error"]["title"]
    assert f'scenarium_worker_restarts_total{{scenario="unit"}} {killed:.1f}' in gateway.client.get("/metrics").text


def test_a_dead_zygote(shared_lab, gateway):
    def event(load):
        before, dead = workers(gateway), zygotes(gateway)
        assert dead
        for pid in dead:
            os.kill(pid, signal.SIGKILL)
        load.reached(load.answered + 1000)
        assert workers(gateway) == before
        os.kill(before[0], signal.SIGKILL)  # its successor needs another zygote
        restarted(shared_lab, gateway, before)
        assert not set(zygotes(gateway)) & set(dead)

    load = Load(gateway)
    load.under(event)
    load.lost_nothing()


class Beside(Load):
    """Now and then a request goes to one of two scenarios of which one has room."""

    def path(self, number):
        return f"/scenarios/m{number // 200 % 2}/predict" if number % 200 == 0 else "/scenarios/unit/predict"


def test_eviction(lab):
    lab.publish("unit")
    for name in ("m0", "m1"):
        lab.publish(name, "heavy", weights=24 << 20)
    sets = ["scenarios.m0.plugin=heavy", "gateway.residence_s=0"]
    both = lab.start({"unit": "unit", "heavy": "heavy"}, *sets)
    both.ready("unit", "m0")
    used, one = lab.until(lambda: (found := memory(both))[1] and found)
    both.stop()
    gateway = lab.start({"unit": "unit", "heavy": "heavy"}, *sets, "scenarios.m1.plugin=heavy", f"gateway.memory_budget={int(used + 0.6 * one)}")
    gateway.ready("unit")
    load = Beside(gateway)
    load.under(lambda load: lab.until(lambda: sum(each["event"] == "evicted" for each in list(gateway.events)) >= 10, 30))
    load.lost_nothing()


def memory(gateway):
    """Bytes of all processes, and of the worker of ``m0``; 0 where they were not measured yet."""
    metrics = dict(line.rsplit(" ", 1) for line in gateway.client.get("/metrics").text.splitlines() if not line.startswith("#"))
    return float(metrics.get("scenarium_memory_used_bytes", 0)), float(metrics.get('scenarium_memory_bytes{scenario="m0"}', 0))


def test_sigterm(lab):
    """What was read is answered; what was not read is refused without a byte, and was never run."""
    trail = lab.folder / "trail"
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    processes = gateway.processes()
    load = Load(gateway, trail=str(trail))
    load.under(lambda load: (load.reached(TOTAL), gateway.popen.send_signal(signal.SIGTERM), load.refused.wait(20)))
    assert gateway.popen.wait(20) == 0
    assert not lab.alive(processes)
    assert load.wrong == []
    assert load.answered >= TOTAL
    assert 1 <= len(load.torn) <= CLIENTS
    assert set(load.torn.values()) == {b""}, "an answer is whole or has not begun"
    run = trail.read_text().split()
    assert len(run) == len(set(run)) == load.answered
    assert not set(run) & set(load.torn)


def test_sigkill_of_the_gateway_leaves_no_process(lab):
    lab.publish("unit")
    lab.publish("other", "unit")
    gateway = lab.start({"unit": "unit"}, "scenarios.other.plugin=unit", "scenarios.unit.serve.workers=2")
    gateway.ready("unit", "other")
    load = Load(gateway)
    processes = load.under(lambda load: (load.reached(TOTAL), gateway.processes(), gateway.popen.kill(), load.refused.wait(20))[1])
    assert len(processes) == 5
    lab.until(lambda: not lab.alive(processes), 5)
    assert load.wrong == []
    assert load.answered >= TOTAL
