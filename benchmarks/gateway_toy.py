"""A toy model through the gateway, beside plain FastAPI, LitServe, MLServer, BentoML and Ray Serve: p50 at one client, requests a second at 32.

FastAPI + pydantic runs the model in the handler of one process. The alternatives batch (32 at most) and live in environments of their own
(``benchmarks.peers``). MLServer, BentoML and Ray Serve run in turn beside us alone, since what they do when idle would fall on the others.
Ours has everything on: key, rate, quota, metrics, ids, deadlines. Every server gets the same headers. At the end two figures of the machine:
the requests a second that ``wrk`` makes of a server that parses nothing, and how long a bare message takes to another process and back, which
is the least that an answer from a worker can cost over one from the same process.

    python -m benchmarks.gateway_toy [--rounds 5] [--seconds 3]
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import load, peers, results
from benchmarks.load import OURS, SERVERS, Server

PACKAGES = ("fastapi", "starlette", "uvicorn", "uvloop", "pydantic", "numpy")
FEATURES = [round(i / 64, 4) for i in range(64)]
BODY = load.json_body({"features": FEATURES})
ROWS = load.json_body({"features": [FEATURES]})
"""What a batchable endpoint of BentoML takes."""
V2 = load.json_body({"inputs": [{"name": "features", "shape": [1, 64], "datatype": "FP32", "data": FEATURES}]})
MARKS = {"FastAPI": (1.2, 1.6), "LitServe": (5, 8), "MLServer": (5, 8), "BentoML": (15, 25), "Ray Serve": (15, 30)}
CLIENTS = 32
ECHO = "import socket, sys; s = socket.socket(fileno=int(sys.argv[1]))\nwhile data := s.recv(65536): s.sendall(data)"


def right(answer: Any) -> bool:
    """Whether it is a label with its score, in any server's form."""
    if isinstance(answer, list):
        return len(answer) == 1 and right(answer[0])
    return answer.get("label") in ("calm", "alarm") or [each["name"] for each in answer.get("outputs", ())] == ["label", "score"]


def alternatives(folder: Path) -> list[list[Server]]:
    """The servers that run at once with ours, comparison by comparison."""
    litserve, mlserver, bento, ray = (str(peers.python_of(peer)) for peer in ("", "mlserver", "bentoml", "ray"))
    fastapi = Server("FastAPI", [sys.executable, str(SERVERS / "toy_fastapi.py"), "{port}"])
    home = {"BENTOML_HOME": str(folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "True", "PYTHONPATH": str(SERVERS)}
    serve = [bento, "-m", "bentoml", "serve", "toy_bentoml:Toy", "--port", "{port}", "--host", "127.0.0.1", "--working-dir", str(SERVERS)]
    return [
        [fastapi, Server("LitServe", [litserve, str(SERVERS / "toy_litserve.py"), "{port}"])],
        [Server("MLServer", [mlserver, str(SERVERS / "toy_mlserver.py"), "{port}"], "/v2/models/toy/infer", V2)],
        [Server("BentoML", serve, body=ROWS, environment=home)],
        [Server("Ray Serve", [ray, str(SERVERS / "toy_ray.py"), "{port}"], environment={"RAY_USAGE_STATS_ENABLED": "0"}, patience_s=120)],
    ]


def figures(rounds: int = 5, seconds: float = 3, comparisons: int | None = None) -> list[results.Figure]:
    """Measure every comparison, or the first ``comparisons``."""
    made: list[results.Figure] = []
    with load.scratch() as folder:
        ours = load.Ours(folder, "toy", str(SERVERS / "toy_plugin.py"))
        ours.train()
        own = ours.server()
        headers = load.json_headers(ours.key)
        for group in alternatives(folder)[:comparisons]:
            first = group[0].name == "FastAPI"
            with load.running([*group, own], BODY, right, headers) as servers:
                found = load.measure(servers, (1, CLIENTS) if first else (CLIENTS,), rounds if first else 3, seconds, headers)
            if first:
                made += latency(found)
            for peer in group:
                made += throughput(found, peer.name, seconds, shown=first or peer is not group[0])
        made.append(ceiling(headers))
    return [*made, results.figure("toy model, p50 at one client: a bare message to another process and back", round_trip(), "µs", "lower")]


def latency(found: load.Found) -> list[results.Figure]:
    """What we add at one client."""
    added = [own.p50_us - plain.p50_us for own, plain in zip(found[OURS, 1], found["FastAPI", 1], strict=True)]
    made = [results.figure("toy model, p50 at one client: over plain FastAPI + pydantic", load.summary("added p50, µs", added), "µs", "lower", 100, 50)]
    for name in ("FastAPI", "LitServe", OURS):
        made.append(results.figure(f"toy model, p50 at one client: {name}", statistics.median(x.p50_us for x in found[name, 1]), "µs", "lower"))
    return made


def throughput(found: load.Found, peer: str, seconds: float, *, shown: bool) -> list[results.Figure]:
    """Our requests a second over the peer's at 32 clients."""
    rates = {name: [load.answered(each, seconds) for each in found[name, CLIENTS]] for name in (peer, OURS)}
    ratio = load.summary(f"requests/s against {peer}", [own / max(other, 1) for own, other in zip(rates[OURS], rates[peer], strict=True)])
    made = [results.figure(f"toy model, requests/s at 32 clients: against {peer}", ratio, "times", "higher", *MARKS[peer])]
    for name in (peer, OURS) if shown and peer == "FastAPI" else (peer,):
        made.append(results.figure(f"toy model, requests/s at 32 clients: {name}", statistics.median(rates[name]), "1/s", "higher"))
    return made


def ceiling(headers: dict[str, str]) -> results.Figure:
    """What the load can ask for."""
    bare = Server("ceiling", [sys.executable, str(SERVERS / "fixed.py"), "{port}"])
    with load.running([bare], BODY, right, headers) as servers:
        most = max(load.wrk(servers["ceiling"], CLIENTS, 2, headers).per_second for _ in range(3))
    return results.figure("toy model, requests/s at 32 clients: most that the load can ask for", most, "1/s", "higher")


def round_trip(messages: int = 3000, pause_s: float = 0.0003) -> float:
    """Median microseconds of a message over a socket pair to a process that sends it back, with other work between two of them."""
    ours, other = socket.socketpair()
    child = subprocess.Popen([sys.executable, "-c", ECHO, str(other.fileno())], pass_fds=[other.fileno()])
    other.close()
    took = []
    for _ in range(messages):
        began = time.perf_counter()
        ours.sendall(BODY)
        ours.recv(65_536)
        took.append(time.perf_counter() - began)
        while time.perf_counter() - began < took[-1] + pause_s:
            pass
    ours.close()
    child.wait()
    return statistics.median(took) * 1e6


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    peers.main()
    made = figures(options.rounds, options.seconds)
    results.show(made)
    results.write("gateway", made, PACKAGES, peers.versions())


if __name__ == "__main__":
    main()
