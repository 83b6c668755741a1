"""``engine = "triton"``: a gateway whose forward runs in a real Triton, which is then killed, or loses a model's process."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from pathlib import Path

import httpx
import pytest
import tritonclient.grpc

from tests.gateway import triton
from tests.gateway.conftest import alive, until
from tests.gateway.v2_servers import TENSORS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(triton.missing() is not None, reason=str(triton.missing()))]


class Pair:
    """Triton and the gateway before it."""

    def __init__(self, lab, folder: Path) -> None:
        self.models = triton.repository(folder / "models", TENSORS)
        self.folder = folder
        self.triton = triton.start(folder, self.models)
        lab.publish("tensors", inputs=list(TENSORS.INPUTS), outputs=list(TENSORS.OUTPUTS))
        sets = ('scenarios.tensors.serve.engine="triton"', f'scenarios.tensors.serve.triton_url="{self.triton.grpc}"')
        self.gateway = lab.start({"tensors": "tensors"}, *sets)
        self.gateway.ready("tensors")

    def ask(self, *ids: int, **headers: str):
        return self.gateway.client.post("/scenarios/tensors/predict", json={"x": [1, 2, 3, 4], "ids": ids or [1]}, headers=headers)

    def metric(self, line: str) -> float:
        """The value of one series."""
        text = self.gateway.client.get("/metrics").text
        return float(next(each.rpartition(" ")[2] for each in text.splitlines() if each.startswith(line)))

    def regions(self) -> set[str]:
        """The shared memory that Triton has mapped."""
        with tritonclient.grpc.InferenceServerClient(self.triton.grpc) as client:
            return set(client.get_system_shared_memory_status().regions)

    def restart(self) -> None:
        """Start Triton again at the same address."""
        ports = tuple(int(address.rpartition(":")[2]) for address in (self.triton.http, self.triton.grpc, self.triton.metrics))
        self.triton = triton.Server(triton.FOLDER, self.models, ports, log=self.folder / "again.log")

    def stubs(self) -> list[int]:
        """The processes of Triton's models called ``tensors``."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().decode().split("\0")
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except (OSError, UnicodeDecodeError):
                    continue
                if parent == self.triton.popen.pid and any("/tensors/" in word for word in words):
                    found.append(int(entry.name))
        return found


@pytest.fixture(scope="module")
def pair(shared_lab, tmp_path_factory):
    found = Pair(shared_lab, tmp_path_factory.mktemp("triton"))
    yield found
    found.triton.stop()


def test_answers(pair):
    answer = pair.ask(3, 4)
    assert answer.json() == {"sums": [10, 4], "count": 7}
    assert answer.headers["x-scenarium-version"] == "1"
    until(lambda: pair.metric('scenarium_triton_requests_total{outcome="ok",scenario="tensors"}') >= 1)
    assert pair.metric('scenarium_triton_breaker{scenario="tensors",state="closed"}') == 1


def test_large_batches_go_by_shared_memory(pair):
    ids = list(range(20_000))
    assert pair.ask(*ids).json()["count"] == sum(ids)
    assert pair.ask(*ids[1:]).json()["count"] == sum(ids)
    assert not list(Path("/dev/shm").glob("scenarium-*"))


def test_a_client_that_leaves_leaves_no_memory_behind(pair):
    large = list(range(1, 20_000))
    assert pair.ask(*large).status_code == 200
    before = pair.regions()
    assert len(before) == 1
    for _ in range(3):
        asked = {"x": [1, 2, 3, 4], "ids": [TENSORS.SLEEP, *large]}
        with pytest.raises(httpx.ReadTimeout):
            pair.gateway.client.post("/scenarios/tensors/predict", json=asked, timeout=0.15)
    assert pair.ask(*large).json()["count"] == sum(large)
    time.sleep(0.4)  # Triton has ended what it ran, and may be asked for the memory
    assert pair.ask(*large).json()["count"] == sum(large)
    until(lambda: pair.ask(*large).status_code == 200 and len(pair.regions()) == 1)
    assert pair.regions() != before  # what a call that was given up may still read is not written again


def test_a_fault_of_the_model(pair):
    answer = pair.ask(TENSORS.RAISE)
    assert (answer.status_code, answer.json()["code"]) == (502, "SCN-6053")
    assert "as it was asked to" in answer.json()["title"]
    assert pair.ask().status_code == 200


@pytest.mark.alone
def test_the_deadline_is_passed_on(pair):
    began = time.monotonic()
    answer = pair.ask(TENSORS.SLEEP, **{"X-Scenarium-Deadline-Ms": "100"})
    assert answer.status_code == 504
    assert time.monotonic() - began < 0.28  # Triton would have needed 0.3
    assert pair.ask().status_code == 200


def test_a_cancel_is_passed_on(pair):
    before = pair.metric('scenarium_triton_requests_total{outcome="cancelled",scenario="tensors"}')
    with pytest.raises(httpx.ReadTimeout):
        pair.gateway.client.post("/scenarios/tensors/predict", json={"x": [1, 2, 3, 4], "ids": [TENSORS.SLEEP]}, timeout=0.1)
    began = time.monotonic()
    assert pair.ask().status_code == 200  # on a connection of its own, since a cancel closes one
    assert time.monotonic() - began < 0.5
    until(lambda: pair.metric('scenarium_triton_requests_total{outcome="cancelled",scenario="tensors"}') == before + 1)


def test_a_killed_model_is_loaded_again(pair):
    stubs = pair.stubs()
    assert stubs
    for pid in stubs:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(set(stubs)))
    began = time.monotonic()
    answer = pair.ask()
    assert time.monotonic() - began < 2
    assert (answer.status_code, answer.json()["code"]) == (503, "SCN-6051")
    assert answer.headers["retry-after"] == "1"
    until(lambda: pair.ask().status_code == 200, 30)
    assert pair.stubs()


def test_killed_under_load(pair):
    pid = next(link["pid"] for link in pair.gateway.client.get("/scenarios/tensors").json()["workers"])
    found: list[tuple[float, float, int, str]] = []
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            began = time.monotonic()
            answer = pair.ask()
            found.append((began, time.monotonic() - began, answer.status_code, answer.json().get("code", "")))
            time.sleep(0.002)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    pair.triton.popen.kill()
    pair.triton.stop()
    time.sleep(1.0)
    assert pair.metric('scenarium_triton_breaker{scenario="tensors",state="open"}') == 1
    pair.restart()
    until(lambda: found and found[-1][2] == 200, 30)
    over.set()
    for thread in threads:
        thread.join()
    failed = [each for each in found if each[2] != 200]
    assert len(failed) > 50
    assert {each[2:] for each in failed} == {(503, "SCN-6050")}
    assert statistics.median(each[1] for each in failed) < 0.1
    assert max(each[1] for each in failed) < 5
    assert pair.gateway.client.get("/scenarios/tensors").json()["workers"][0]["pid"] == pid  # the same worker
    assert pair.metric('scenarium_triton_requests_total{outcome="refused",scenario="tensors"}') > 50
