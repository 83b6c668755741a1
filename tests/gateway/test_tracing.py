"""Traces of real gateways, received by a real OTLP receiver: an HTTP server that decodes what the exporter sends."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from scenarium.core import spans
from scenarium.gateway.predict import Call

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
SERVER, INTERNAL = 2, 1


class Receiver:
    """Takes spans in, as plain dictionaries."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                receiver.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, request: ExportTraceServiceRequest) -> None:
        def plain(attributes: Any) -> dict[str, Any]:
            return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}

        for resource in request.resource_spans:
            about = plain(resource.resource.attributes)
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        {
                            "service": about,
                            "scope": scope.scope.name,
                            "name": span.name,
                            "kind": span.kind,
                            "trace": span.trace_id.hex(),
                            "id": span.span_id.hex(),
                            "parent": span.parent_span_id.hex(),
                            "state": span.trace_state,
                            "start": span.start_time_unix_nano,
                            "end": span.end_time_unix_nano,
                            "status": span.status.code,
                            "links": [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                            **plain(span.attributes),
                        }
                    )

    def of(self, trace: str) -> list[dict[str, Any]]:
        return [span for span in list(self.spans) if span["trace"] == trace]

    def named(self, trace: str, name: str) -> dict[str, Any] | None:
        return next((span for span in self.of(trace) if span["name"] == name), None)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        variables.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture(scope="module")
def gateway(shared_lab, receiver):
    """One that sends its spans to the receiver."""
    shared_lab.publish("unit")
    found = shared_lab.start({"unit": "unit"}, "scenarios.unit.serve.log_payloads=true")
    found.ready("unit")
    return found


def test_the_spans_of_a_request_from_client_to_plugin(lab, receiver, gateway) -> None:
    before = time.time_ns()
    answer = gateway.ask("unit", "x", do="span", seconds=0.05, headers=SAMPLED | {"tracestate": "vendor=1,other=a:b"})
    after = time.time_ns()
    assert answer.status_code == 200
    names = {"POST /scenarios/{name}/predict", "queue", "predict", "preprocess", "forward", "postprocess", "look up"}
    lab.until(lambda: {span["name"] for span in receiver.of(TRACE)} == names)
    assert len(receiver.of(TRACE)) == len(names), "each once"
    assert {span["state"] for span in receiver.of(TRACE)} == {"vendor=1,other=a:b"}
    found = {span["name"]: span for span in receiver.of(TRACE)}
    request, queue, predict = found["POST /scenarios/{name}/predict"], found["queue"], found["predict"]
    assert (request["parent"], request["kind"], request["status"]) == (CALLER, SERVER, 0)
    assert (
        request.items()
        >= {
            "http.request.method": "POST",
            "http.route": "/scenarios/{name}/predict",
            "http.response.status_code": 200,
            "url.path": "/scenarios/unit/predict",
            "url.scheme": "http",
            "server.port": int(gateway.url.rpartition(":")[2]),
            "client.address": "127.0.0.1",
            "network.protocol.version": "1.1",
            "scenarium.scenario": "unit",
            "scenarium.version": "1",
        }.items()
    )
    assert request["user_agent.original"].startswith("python-httpx/")
    assert queue["parent"] == predict["parent"] == request["id"]
    for step in ("preprocess", "forward", "postprocess"):
        assert found[step]["parent"] == predict["id"]
        assert predict["start"] <= found[step]["start"] <= found[step]["end"] <= predict["end"]
    assert (found["look up"]["parent"], found["look up"]["scope"]) == (predict["id"], "plugin")
    assert found["forward"]["end"] - found["forward"]["start"] >= 50_000_000
    assert before <= request["start"] <= queue["start"] <= queue["end"] <= predict["end"]
    assert request["start"] <= predict["start"]
    assert request["end"] <= after + 500_000_000  # it ends when the answer was sent, and the client may have read it by then
    assert request["service"].items() >= {"service.name": "scenarium"}.items()
    assert predict["service"].items() >= {"service.name": "scenarium", "scenarium.scenario": "unit", "process.pid": str(answer.json()["pid"])}.items()
    assert predict["scenarium.batch_size"] == 1


def test_a_request_without_traceparent_starts_a_trace_which_the_log_names(lab, receiver, gateway) -> None:
    answer = gateway.ask("unit", "x", do="raise", headers={"X-Request-Id": "r1"})
    assert answer.status_code == 500
    logged = gateway.wait_event("request_failed", request_id="r1")
    found = lab.until(lambda: receiver.named(logged["trace_id"], "POST /scenarios/{name}/predict"))
    assert (found["parent"], found["status"], found["error.type"]) == ("", 2, "500")
    refused = gateway.client.post("/scenarios/none/predict", json={}, headers={"traceparent": f"00-{'a' * 32}-{CALLER}-01"})
    assert refused.status_code == 404
    found = lab.until(lambda: receiver.named("a" * 32, "POST /scenarios/{name}/predict"))
    assert (found["http.response.status_code"], found["status"]) == (404, 0), "the client's error is none of the server's"
    gateway.client.get("/scenarios/unit", headers={"traceparent": f"00-{'b' * 32}-{CALLER}-01"})
    lab.until(lambda: receiver.named("b" * 32, "GET /scenarios/{name}"))


def test_what_is_not_sampled_sends_nothing_and_still_reaches_the_log(lab, receiver, gateway) -> None:
    unsampled = "c" * 32
    assert gateway.ask("unit", headers={"traceparent": f"00-{unsampled}-{CALLER}-00", "X-Request-Id": "r2"}).status_code == 200
    payload = gateway.wait_event("payload", request_id="r2")
    assert payload["trace_id"] == unsampled
    assert payload["traceparent"].endswith("-00")
    later = "d" * 32
    gateway.ask("unit", headers={"traceparent": f"00-{later}-{CALLER}-01"})
    lab.until(lambda: receiver.named(later, "forward"))
    assert receiver.of(unsampled) == []


def test_a_batch_of_several_traces_links_them(lab, receiver, gateway, tmp_path) -> None:
    traces = [f"{number:032x}" for number in range(1, 5)]
    with ThreadPoolExecutor(5) as pool:
        busy = pool.submit(gateway.ask, "unit", "first", do="sleep", seconds=1, trail=str(tmp_path / "trail"))
        lab.until((tmp_path / "trail").exists)  # the others wait while that one is computed
        asked = [pool.submit(gateway.ask, "unit", "x", do="span", headers={"traceparent": f"00-{trace}-{CALLER}-01"}) for trace in traces]
        assert busy.result().status_code == 200
        assert {each.result().json()["batch"] for each in asked} == {4}
    lab.until(lambda: all(receiver.named(trace, "predict") for trace in traces))
    found = [receiver.named(trace, "predict") for trace in traces]
    first = next(span for span in found if not span["links"])
    assert [span["links"] for span in found if span is not first] == [[(first["trace"], first["id"])]] * 3
    assert {span["scenarium.batch_size"] for span in found} == {4}
    lab.until(lambda: len([span for span in receiver.of(first["trace"]) if span["scope"] == "plugin"]) == 4)
    assert {span["parent"] for span in receiver.of(first["trace"]) if span["scope"] == "plugin"} == {first["id"]}
    queue = lab.until(lambda: receiver.named(traces[0], "queue"))
    assert queue["end"] - queue["start"] > 100_000_000, "it waited for the first"


def test_streams_batches_and_jobs_are_traced_too(lab, receiver, gateway) -> None:
    one, two, three = (f"{number:032x}" for number in (21, 22, 23))
    gateway.client.post("/scenarios/unit/stream", json={"text": "s"}, headers={"traceparent": f"00-{one}-{CALLER}-01"})
    stream = lab.until(lambda: receiver.named(one, "stream"))
    request = lab.until(lambda: receiver.named(one, "POST /scenarios/{name}/stream"))
    assert stream["parent"] == request["id"]
    gateway.client.post("/scenarios/unit/predict/batch", json=[{"text": "a"}, {"text": "b"}], headers={"traceparent": f"00-{two}-{CALLER}-01"})
    lab.until(lambda: len([span for span in receiver.of(two) if span["name"] == "predict"]) == 2)
    lab.until(lambda: len([span for span in receiver.of(two) if span["name"] == "queue"]) == 2)
    gateway.client.post("/scenarios/unit/jobs", json={"text": "j"}, headers={"traceparent": f"00-{three}-{CALLER}-01"})
    job = lab.until(lambda: receiver.named(three, "predict"))
    submit = lab.until(lambda: receiver.named(three, "POST /scenarios/{name}/jobs"))
    assert job["parent"] == submit["id"]


def test_the_last_spans_leave_at_the_end(lab, receiver, monkeypatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    last = "e" * 32
    gateway.ask("unit", headers={"traceparent": f"00-{last}-{CALLER}-01"})
    assert gateway.stop() == 0
    assert {span["name"] for span in receiver.of(last)} >= {"POST /scenarios/{name}/predict", "queue", "predict", "forward"}


def test_a_receiver_that_is_not_there_harms_nobody(lab, monkeypatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    assert [gateway.ask("unit").status_code for _ in range(20)] == [200] * 20
    time.sleep(0.2)
    began = time.monotonic()
    assert gateway.stop() == 0
    assert time.monotonic() - began < 10, "the exporter alone would try for longer"


def test_nothing_stands_around_the_app_where_nobody_asked(tmp_path) -> None:
    code = f"""
import sys
from scenarium.core.config import GatewayConfig
from scenarium.core.registry import Registry
from scenarium.core.settings import Settings
from scenarium.core.store import Store
from scenarium.gateway.app import create_app
app = create_app(Registry(Settings.read(environ={{}}), {{}}), Store({str(tmp_path)!r}), GatewayConfig(keys=None))
app.state.gateway.open()
assert app.state.gateway.around(app) is app
print(*[name for name in sys.modules if name.startswith("opentelemetry.sdk") or name.startswith("opentelemetry.exporter")])
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PATH": ""})
    assert made.stdout.strip() == ""


@pytest.mark.parametrize(
    ("setting", "environ", "expected"),
    [
        (None, {}, False),
        (True, {}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        (None, {"OTEL_TRACES_EXPORTER": "otlp"}, True),
        (None, {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
        (False, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
        (True, {"OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_what_turns_it_on(setting: bool | None, environ: dict[str, str], expected: bool) -> None:
    assert spans.wanted(setting, environ) is expected


def test_a_missing_extra_stops_only_who_asked_for_it(tmp_path) -> None:
    """An interpreter that cannot find the exporter, as one without the extra."""
    code = """
import sys
sys.modules["opentelemetry.exporter.otlp.proto.http.trace_exporter"] = None
from scenarium.gateway.tracing import open_tracing
named = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}
assert open_tracing(None, named) is None
try:
    open_tracing(True, {})
except Exception as fault:
    print(fault.code, fault.hint())
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.startswith("SCN-1120")
    assert "scenarium[otel]" in made.stdout
    assert "tracing_unavailable" in made.stderr


@pytest.mark.parametrize("trace", ["", f"00-{'0' * 32}-{CALLER}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{CALLER}-01"])
def test_a_traceparent_that_names_nothing_is_no_parent(trace: str) -> None:
    from opentelemetry.trace import get_current_span

    assert not get_current_span(spans.context_of(trace)).get_span_context().is_valid


def test_a_long_tracestate_goes_on_by_whole_members() -> None:
    members = [f"vendor{number}={'x' * 90}" for number in range(8)]
    for state in (members, [",".join(members)]):
        call = Call([(b"tracestate", each.encode()) for each in state] + [(b"traceparent", SAMPLED["traceparent"].encode())])
        assert call.trace == SAMPLED["traceparent"] + ",".join(members[:5])
    assert Call([(b"tracestate", b"vendor=1")]).trace == ""


def test_a_traceparent_names_trace_span_flags_and_state() -> None:
    from opentelemetry.trace import get_current_span

    found = get_current_span(spans.context_of(SAMPLED["traceparent"] + "vendor=1")).get_span_context()
    assert (f"{found.trace_id:032x}", f"{found.span_id:016x}", found.trace_flags, found.trace_state.get("vendor")) == (TRACE, CALLER, 1, "1")
    assert [spans.sampled(f"00-{TRACE}-{CALLER}-{flags}") for flags in ("00", "01", "02", "03")] == [False, True, False, True]
    assert spans.trace_id(SAMPLED["traceparent"]) == TRACE
