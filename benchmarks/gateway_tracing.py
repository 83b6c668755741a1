"""What traces and the access log add to a request, on a toy model: p50 at one client, each gateway beside one without either.

Everything else is on in all of them: key, rate, quota, metrics, ids, deadlines. Spans go to a receiver on this machine that drops them. A request
that is not sampled still gets a span id of its own, which goes to the worker and the log; where nobody asks for traces none of that code runs.

    python -m benchmarks.gateway_tracing [--rounds 8] [--seconds 2]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks import load, results
from benchmarks.gateway_toy import BODY, right
from benchmarks.load import SERVERS

PLAIN, UNSAMPLED, SAMPLED, LOGGED = "neither", "traces, not sampled", "traces, all sampled", "access log, all requests"
OFF = {"OTEL_SDK_DISABLED": "true"}
MODES: dict[str, tuple[dict[str, str], float]] = {
    PLAIN: (OFF, 0),
    UNSAMPLED: ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, 0),
    SAMPLED: ({"OTEL_TRACES_SAMPLER": "always_on"}, 0),
    LOGGED: (OFF, 1),
}
"""What each gateway does: its variables, and the share of requests in its access log."""
MARKS = {UNSAMPLED: (60.0, 30.0), SAMPLED: (None, None), LOGGED: (None, None)}
PACKAGES = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "uvicorn", "uvloop")


class Receiver(ThreadingHTTPServer):
    """Takes spans and drops them."""

    daemon_threads = True
    taken = 0
    """Posts that came."""

    class _Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            """Read and forget."""
            self.rfile.read(int(self.headers["Content-Length"]))
            Receiver.taken += 1
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""


@contextlib.contextmanager
def receiving() -> Iterator[str]:
    """A receiver's URL."""
    receiver = Receiver(("127.0.0.1", 0), Receiver._Handler)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{receiver.server_port}"
    finally:
        receiver.shutdown()
        receiver.server_close()


def figures(rounds: int = 8, seconds: float = 2) -> list[results.Figure]:
    """Measure all modes in turn."""
    with load.scratch() as folder, receiving() as url:
        ours = load.Ours(folder, "toy", str(SERVERS / "toy_plugin.py"))
        ours.train()
        headers = load.json_headers(ours.key)
        servers = [
            dataclasses.replace(ours.server(mode, **{"gateway.access_log": share}), environment={"OTEL_EXPORTER_OTLP_ENDPOINT": url, **variables})
            for mode, (variables, share) in MODES.items()
        ]
        with load.running(servers, BODY, right, headers) as running:
            found = load.measure(running, (1,), rounds, seconds, headers)
    assert Receiver.taken, "the receiver got nothing"
    assert not any(each.errors for loads in found.values() for each in loads)
    made = []
    for mode, mark in MARKS.items():
        added = [one.p50_us - plain.p50_us for one, plain in zip(found[mode, 1], found[PLAIN, 1], strict=True)]
        made.append(results.figure(f"toy model, p50 at one client: added by {mode}", load.summary(f"added by {mode}, µs", added), "µs", "lower", *mark))
    plain_p50 = statistics.median(each.p50_us for each in found[PLAIN, 1])
    made.append(results.figure("toy model, p50 at one client: neither traces nor access log", plain_p50, "µs", "lower"))
    return made


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2)
    options = parser.parse_args()
    made = figures(options.rounds, options.seconds)
    results.show(made)
    results.write("gateway", made, PACKAGES)


if __name__ == "__main__":
    main()
