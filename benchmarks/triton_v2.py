"""v2 inference with binary tensors: our gateway beside a real Triton whose python backend runs the same eager torch module, ``perf_analyzer`` as load.

Both run at once on the same cores and take turns, HTTP and gRPC, 1 and 32 clients, one row a request. Triton batches dynamically without a
delay, as we do, and runs all requests of a batch in one forward; one instance and one worker, one thread each. Ours asks for an API key and
counts it; Triton knows none.

    python -m benchmarks.triton_v2 [--rounds 5] [--window-ms 800]
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import statistics
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http

from benchmarks import load, results
from benchmarks.load import OURS, SERVERS
from scenarium.core.triton.server import Server
from tests.gateway import perf_analyzer, triton

PACKAGES = ("torch", "numpy", "fastapi", "starlette", "uvicorn", "grpcio", "tritonclient")
OTHERS = {"tritonserver": "2.51.0 (nvidia-pytriton 0.7.0)", "perf_analyzer": "2.43.0"}
CLIENTS = (1, 32)
PROTOCOLS = ("http", "grpc")
MODEL = "mlp"
CONFIG = """name: "mlp"
backend: "python"
max_batch_size: 32
input [ { name: "X" data_type: TYPE_FP32 dims: [ 128 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 16 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
dynamic_batching { }
"""


def start_triton(folder: Path, version: Path) -> Server:
    """A Triton with the one model; the module and torch are those of the environment that runs this."""
    model = folder / "models" / MODEL
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text((SERVERS / "mlp_triton.py").read_text())
    (model / "config.pbtxt").write_text(CONFIG)
    os.environ |= {"MLP_PACKAGES": sysconfig.get_path("purelib"), "MLP_SERVERS": str(SERVERS), "MLP_VERSION": str(version), "OMP_NUM_THREADS": "1"}
    return triton.start(folder, folder / "models")


def start_ours(folder: Path, ours: load.Ours, **serve: Any) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """Our gateway with these settings, and its address for each protocol."""
    server = ours.server(workers=1, threads=1, max_batch_size=32, **{"gateway.grpc_port": 0}, **serve)
    http = load.free_port()
    command = [part.replace("{port}", str(http)) for part in server.command]
    log = folder / "gateway.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(load.ROOT.parent)})
    until = time.monotonic() + 60
    while not ((found := re.search(r'"listening_grpc".*?"address": "([^"]+)"', log.read_text())) and "worker_ready" in log.read_text()):
        if process.poll() is not None or time.monotonic() > until:
            load.end(process)
            raise SystemExit(f"our gateway did not start: {log.read_text()[-3000:]}")
        time.sleep(0.1)
    return process, {"http": f"127.0.0.1:{http}", "grpc": found[1]}


def same_answers(addresses: dict[str, dict[str, str]], headers: dict[str, str]) -> None:
    """See that both servers compute the same.

    Raises:
        AssertionError: they do not.
    """
    rows = np.random.default_rng(0).normal(size=(5, 128)).astype(np.float32)
    asked = tritonclient.http.InferInput("X", list(rows.shape), "FP32")
    asked.set_data_from_numpy(rows)
    found: dict[str, Any] = {}
    for name, address in addresses.items():
        with tritonclient.http.InferenceServerClient(address["http"]) as client:
            found[name] = client.infer(MODEL, [asked], headers=headers).as_numpy("Y")
    np.testing.assert_allclose(found[OURS], found["Triton"], rtol=1e-5, atol=1e-6)


def measure(addresses: dict[str, dict[str, str]], key: str, rounds: int, window_ms: int) -> dict[tuple[str, int, str], list[float]]:
    """Requests a second of each round, by protocol, clients and server; a first round warms up."""
    found: dict[tuple[str, int, str], list[float]] = {}
    for number in range(rounds + 1):
        for protocol, clients in itertools.product(PROTOCOLS, CLIENTS):
            for name in addresses if number % 2 else reversed(addresses):
                more = ["-H", f"authorization:Bearer {key}"] if name == OURS else []
                got = perf_analyzer.run(addresses[name][protocol], protocol, MODEL, *more, clients=clients, window_ms=window_ms if number else 200)
                if number:
                    found.setdefault((protocol, clients, name), []).append(got.per_second)
                    print(f"round {number}  {protocol} {clients:3} clients  {name:10} {got.per_second:8.1f}/s  p50 {got.p50_us:7.0f} µs", flush=True)
    return found


def figures(rounds: int, window_ms: int) -> list[results.Figure]:
    """Measure."""
    made = []
    with load.scratch() as folder:
        ours = load.Ours(folder, MODEL, str(SERVERS / "mlp_plugin.py"))
        version = ours.train()
        server = start_triton(folder / "triton", version)
        try:
            process, own = start_ours(folder, ours)
            try:
                addresses = {OURS: own, "Triton": {"http": server.http, "grpc": server.grpc}}
                same_answers(addresses, {"authorization": f"Bearer {ours.key}"})
                found = measure(addresses, ours.key, rounds, window_ms)
            finally:
                load.end(process)
        finally:
            server.stop()
    for protocol, clients in itertools.product(PROTOCOLS, CLIENTS):
        what = f"v2 binary infer, {protocol.upper()}, {clients} client{'s' if clients > 1 else ''}"
        rates = {name: found[protocol, clients, name] for name in addresses}
        ratio = load.summary(f"{what}: against Triton", [a / b for a, b in zip(rates[OURS], rates["Triton"], strict=True)])
        made.append(results.figure(f"{what}, requests/s: against Triton's python backend, same torch model", ratio, "times", "higher", 1.2, 2))
        made += [results.figure(f"{what}, requests/s: {name}", statistics.median(values), "1/s", "higher") for name, values in rates.items()]
    return made


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window-ms", type=int, default=800)
    options = parser.parse_args()
    if reason := triton.missing():
        raise SystemExit(reason)
    made = figures(options.rounds, options.window_ms)
    results.show(made)
    results.write("triton", made, PACKAGES, OTHERS)


if __name__ == "__main__":
    main()
