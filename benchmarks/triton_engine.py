"""What ``engine = "triton"`` adds to a call of Triton: the same rows to the same model, by tritonclient straight and by the engine, in turns, one at a time.

The model is a version's ONNX export, served by a real Triton from the store's ``models/``. Three ways: a plain ``tritonclient.grpc`` call; the engine
as a worker calls it, in this process; the same request by v2 over HTTP to our gateway (key, limits, queue, worker and all), whose worker asks Triton.
Every round takes the three in another order; the figure is the median over the rounds of the difference of their p50.

Both added figures are held to the same marks: the first is the engine alone, the second all that a client sees.

    python -m benchmarks.triton_engine [--rounds 15] [--calls 200]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import socket
import statistics
import time
from collections.abc import Callable

import numpy as np
import tritonclient.grpc
import tritonclient.http

from benchmarks import load, results
from benchmarks.load import SERVERS
from benchmarks.triton_v2 import MODEL, OTHERS, start_ours
from scenarium.core.calls import Served
from scenarium.core.config import ServeConfig
from scenarium.core.engines.triton_engine import TritonEngine
from scenarium.core.store import Store
from tests.gateway import triton

PACKAGES = ("numpy", "grpcio", "tritonclient", "onnxruntime")
DIRECT, ENGINE, GATEWAY = "tritonclient", "engine", "gateway"


def plain(address: str, rows: np.ndarray) -> Callable[[], np.ndarray]:
    """One call by tritonclient, as its documentation shows it."""
    client = tritonclient.grpc.InferenceServerClient(address)

    def call() -> np.ndarray:
        asked = tritonclient.grpc.InferInput("X", list(rows.shape), "FP32")
        asked.set_data_from_numpy(rows)
        found: np.ndarray = client.infer(MODEL, [asked]).as_numpy("Y")
        return found

    return call


def over_http(address: str, rows: np.ndarray, key: str) -> Callable[[], np.ndarray]:
    """One v2 request with binary tensors over a connection that stays; the client is the standard library's, which costs least."""
    asked = tritonclient.http.InferInput("X", list(rows.shape), "FP32")
    asked.set_data_from_numpy(rows)
    body, length = tritonclient.http.InferenceServerClient.generate_request_body([asked])
    connection = http.client.HTTPConnection(address)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    headers = {"Inference-Header-Content-Length": str(length), "Authorization": f"Bearer {key}"}

    def call() -> np.ndarray:
        connection.request("POST", f"/v2/models/{MODEL}/infer", body, headers)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return np.frombuffer(content[int(answer.headers["Inference-Header-Content-Length"]) :], np.float32).reshape(len(rows), -1)

    return call


def p50(call: Callable[[], object], calls: int) -> float:
    """Microseconds."""
    times = []
    for _ in range(calls):
        began = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - began)
    return statistics.median(times) / 1000


def measure(ways: dict[str, Callable[[], np.ndarray]], rounds: int, calls: int) -> dict[str, list[float]]:
    """The p50 of each round, by way; a first round warms up."""
    first, *others = (way() for way in ways.values())
    for other in others:
        np.testing.assert_allclose(first, other, rtol=1e-5, atol=1e-6)
    found: dict[str, list[float]] = {name: [] for name in ways}
    orders = itertools.cycle(itertools.permutations(ways))
    for number in range(rounds + 1):
        for name in next(orders):
            value = p50(ways[name], calls if number else 50)
            if number:
                found[name].append(value)
        if number:
            print(f"round {number:2}  " + "  ".join(f"{name} {values[-1]:7.0f} µs" for name, values in found.items()), flush=True)
    return found


def figures(rounds: int, calls: int) -> list[results.Figure]:
    """Measure."""
    rows = np.random.default_rng(0).normal(size=(1, 128)).astype(np.float32)
    with load.scratch() as folder:
        ours = load.Ours(folder, MODEL, str(SERVERS / "mlp_plugin.py"))
        ours.train()
        signature = Store(str(folder / "store")).open(MODEL).manifest.signature
        server = triton.start(folder, folder / "store" / "models")
        with contextlib.ExitStack() as stack:
            stack.callback(server.stop)
            settings = {"engine": "triton", "triton_url": server.grpc}
            process, own = start_ours(folder, ours, **settings)
            stack.callback(load.end, process)
            engine = TritonEngine(Served(MODEL, 1, ServeConfig(**settings)), signature)
            stack.callback(engine.close)
            ways = {DIRECT: plain(server.grpc, rows), ENGINE: lambda: engine({"X": rows})["Y"], GATEWAY: over_http(own["http"], rows, ours.key)}
            found = measure(ways, rounds, calls)
    added = {name: [ours - direct for ours, direct in zip(found[name], found[DIRECT], strict=True)] for name in (ENGINE, GATEWAY)}
    for name, values in added.items():
        load.summary(f"{name}: added µs", values)
    what = "Triton, one client, one row of 128 numbers, p50"
    return [
        results.figure(f'engine = "triton": added p50 over a direct tritonclient call, {ENGINE}', statistics.median(added[ENGINE]), "µs", "lower", 300, 150),
        results.figure(
            f'engine = "triton": added p50 over a direct tritonclient call, {GATEWAY} and worker included',
            statistics.median(added[GATEWAY]),
            "µs",
            "lower",
            300,
            150,
        ),
        *(results.figure(f"{what}: {name}", statistics.median(values), "µs", "lower") for name, values in found.items()),
    ]


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=200)
    options = parser.parse_args()
    if reason := triton.missing():
        raise SystemExit(reason)
    made = figures(options.rounds, options.calls)
    results.show(made)
    results.write("triton", made, PACKAGES, OTHERS)


if __name__ == "__main__":
    main()
