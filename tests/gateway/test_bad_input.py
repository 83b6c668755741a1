"""Bad input over HTTP to a real gateway with the installed plugins: no 5xx, refused cheaply, and what the OpenAPI document says."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import pickle
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException
from websockets.sync.client import connect

from scenarium.core.store import PRODUCTION
from tests.gateway import versions_of_plugins
from tests.gateway.hurtful_pictures import BOMBS, SERVED, gif, png

pytestmark = pytest.mark.slow

PICTURES, TEXTS = ("image_classification", "defect_detection"), ("fraud_text", "medical_ner")
CHECKS = (
    "no_fault_of_ours",
    "errors_are_problem_details",
    "bad_data_is_refused",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "other_methods_are_refused",
    "allow_header_conformance",
)
CPU_S, GROWTH = 1.0, 120 * 2**20
"""What one refusal may take of all the gateway's processes together: processor time on a busy machine, and resident memory."""


WATCH = """
import os, sys
def note(text, file=os.open({file!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)):
    os.write(file, f"{{text}} {{os.getpid()}}\\n".encode())
note("watched")
sys.addaudithook(lambda event, arguments: event == "pickle.find_class" and note(f"pickle {{arguments[0]}}.{{arguments[1]}}"))
"""
"""Runs at the start of every interpreter below the gateway; what is forked from one is watched with it (PEP 578)."""


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file that takes down each class and function that any of the gateway's processes finds by a pickle."""
    folder = tmp_path_factory.mktemp("watch")
    (folder / "sitecustomize.py").write_text(WATCH.format(file=str(folder / "seen")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield folder / "seen"


@pytest.fixture(scope="module")
def gateway(shared_lab: Any, tmp_path_factory: pytest.TempPathFactory, watch: Path) -> Any:
    versions_of_plugins.make(shared_lab.store, tmp_path_factory.mktemp("work"))
    watch.write_text("")  # trainings write checkpoints
    found = shared_lab.start(None, "gateway.body_timeout_s=3", "gateway.grpc_port=0", "scenarios.chatbot.serve.required=false")
    found.ready(*versions_of_plugins.ROWS, timeout=120)
    return found


def test_schemathesis_finds_nothing(gateway: Any, tmp_path: Path) -> None:
    here = Path(__file__).parent
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(here / "schemathesis_checks.py")}
    command = [str(Path(sys.executable).with_name("st")), "run", f"{gateway.url}/openapi.json", "--phases", "examples,coverage,fuzzing,stateful"]
    options = ["-n", "12", "--seed", "1", "--workers", "2", "--request-timeout", "30", "--continue-on-failure", "--no-color", "--checks", ",".join(CHECKS)]
    done = subprocess.run([*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    tested = re.search(r"Tested: (\d+)", done.stdout)
    assert tested
    assert int(tested[1]) >= 4 * len(versions_of_plugins.ROWS) + 10
    assert not [event for event in gateway.events if event["event"] in ("gateway_fault", "worker_garbled", "worker_died", "worker_killed")]


def usage(gateway: Any) -> tuple[float, int]:
    """Processor seconds and resident bytes of the gateway and its workers."""
    seconds = resident = 0.0
    for pid in gateway.processes():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            resident += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds, int(resident)


@pytest.fixture
def cheap(gateway: Any) -> Iterator[None]:
    """What the test does costs the gateway little, and harms nobody."""
    seconds, resident = usage(gateway)
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    after = usage(gateway)
    assert after[0] - seconds < CPU_S + 0.15 * took  # workers answer their own samples meanwhile
    assert after[1] - resident < GROWTH
    assert gateway.client.get("/readyz").status_code == 200
    sample = gateway.client.get("/scenarios/fraud_text").json()["sample"]
    assert gateway.client.post("/scenarios/fraud_text/predict", json=sample).status_code == 200


def refused(answer: httpx.Response, *statuses: int) -> dict[str, Any]:
    assert answer.status_code in (statuses or (400, 413, 422)), answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 2000
    return dict(answer.json())


# ── pictures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("what", BOMBS)
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_built_to_hurt(gateway: Any, name: str, what: str) -> None:
    for answer in (
        gateway.client.post(f"/scenarios/{name}/predict", content=BOMBS[what]),
        gateway.client.post(f"/scenarios/{name}/predict", json={"image": base64.b64encode(BOMBS[what]).decode()}),
        gateway.client.post(f"/scenarios/{name}/predict", files={"file": ("../../x.png", BOMBS[what])}),
    ):
        if what not in SERVED or answer.status_code != 200:
            assert refused(answer)["field"] == "image"


@pytest.mark.usefixtures("cheap")
def test_of_an_animation_one_frame_is_read(gateway: Any) -> None:
    answer = gateway.client.post("/scenarios/image_classification/predict", content=gif(1000, 1000, 100_000))
    assert answer.status_code in (200, 422)


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_built_to_hurt_by_the_v2_protocol(gateway: Any, name: str) -> None:
    bodies = [json.dumps({"image": base64.b64encode(bomb).decode()}).encode() for what, bomb in BOMBS.items() if what not in SERVED]
    over_http(gateway, f"{name}.predict", bodies)
    over_grpc(gateway, f"{name}.predict", bodies)


# ── text, numbers, JSON ───────────────────────────────────────────────────────────────────────────────────────────────


HURTFUL = (
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"text": ' + b"[" * 100_000,
    b'{"text": "\xff"}',
    b'{"text": "\\ud800"}',
    '{"text": "你好"}'.encode("gb18030"),
    '{"text": "你好"}'.encode("utf-16"),
    b'{"text": ' + b"9" * 1_000_000 + b"}",
    b"{" + b",".join(b'"x%x": 1' % n for n in range(100_000)) + b"}",
    b"null",
    b"",
)
"""Bodies that are no JSON object of any scenario."""


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("name", versions_of_plugins.ROWS)
def test_json_built_to_hurt(gateway: Any, name: str) -> None:
    url = f"/scenarios/{name}/predict"
    for body in HURTFUL:
        for kind in ("application/json", "application/json; charset=gbk"):
            refused(gateway.client.post(url, content=body, headers={"Content-Type": kind}))


def over_http(gateway: Any, model: str, bodies: Iterable[bytes]) -> None:
    """Each body as a whole request in the binary form of KServe v2 over HTTP, and as the protocol's own JSON: a v2 error, never a 5xx."""
    for body in bodies:
        tensor = {"name": "REQUEST", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(body) + 4}}
        head = json.dumps({"inputs": [tensor]}).encode()
        length = {"Inference-Header-Content-Length": str(len(head))}
        whole = gateway.client.post(f"/v2/models/{model}/infer", content=head + struct.pack("<I", len(body)) + body, headers=length)
        own = gateway.client.post(f"/v2/models/{model}/infer", content=body)
        for answer in (whole, own):
            assert 400 <= answer.status_code < 500, answer.text[:500]
            assert set(answer.json()) == {"error"}
            assert len(answer.content) < 2000


def over_grpc(gateway: Any, model: str, bodies: Iterable[bytes]) -> None:
    """Each body as a whole request over gRPC: refused as the client's fault."""
    with grpc.InferenceServerClient(gateway.wait_event("listening_grpc")["address"]) as client:
        for body in bodies:
            tensor = grpc.InferInput("REQUEST", [1], "BYTES")
            tensor.set_data_from_numpy(np.array([body], dtype=object))
            with pytest.raises(InferenceServerException) as caught:
                client.infer(model, [tensor])
            assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "StatusCode.RESOURCE_EXHAUSTED"), caught.value


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("name", versions_of_plugins.ROWS)
def test_json_built_to_hurt_by_the_v2_protocol(gateway: Any, name: str) -> None:
    over_http(gateway, f"{name}.predict", HURTFUL)
    over_grpc(gateway, f"{name}.predict", HURTFUL)


@pytest.mark.usefixtures("cheap")
def test_json_built_to_hurt_a_stream_and_the_protocol_of_openai(gateway: Any) -> None:
    for body in HURTFUL:
        refused(gateway.client.post("/scenarios/text_generation/stream", content=body))
        inside = b'{"model": "text_generation", "prompt": ' + (body or b'""') + b', "max_tokens": -1}'
        for whole in (body, inside):
            answer = gateway.client.post("/v1/completions", content=whole)
            assert 400 <= answer.status_code < 500, answer.text[:500]
            assert set(answer.json()) == {"error"}
            assert len(answer.content) < 2000


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("name", versions_of_plugins.ROWS)
def test_live_frames_built_to_hurt(gateway: Any, name: str) -> None:
    """Each is answered in its place, and the connection goes on; bytes that are no text come as binary frames, as a picture does."""
    with connect(f"{gateway.url.replace('http', 'ws')}/scenarios/{name}/live", proxy=None, max_size=None) as live:
        for number, body in enumerate(HURTFUL):
            try:
                live.send(body.decode())
            except UnicodeDecodeError:
                live.send(body)
            told = json.loads(live.recv(30))
            assert (told["frame"], told["dropped"]) == (number, 0)
            assert told["status"] in (400, 413, 415, 422), told
            assert told["error"]["code"].startswith("SCN-")


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e309", "1" + "0" * 400])
def test_numbers_that_are_none(gateway: Any, number: str) -> None:
    series = gateway.client.get("/scenarios/market_forecast").json()["sample"]
    table = gateway.client.get("/scenarios/credit_risk").json()["sample"]
    field = next(key for key, value in table.items() if isinstance(value, (int, float)))
    for name, sample, where in (("market_forecast", series, "prices"), ("credit_risk", table, field)):
        body = json.dumps({**sample, where: "?"}).replace('"?"', f"[{number}, 1, 2]" if where == "prices" else number)
        assert refused(gateway.client.post(f"/scenarios/{name}/predict", content=body))["field"].startswith(where)


def no_number(constant: str) -> None:
    pytest.fail(f"an answer holds {constant}")


@pytest.mark.parametrize("number", ["1e308", "-1e308", "5e-324", "0", "-0.0", str(2**63), str(-(2**63) - 1)])
def test_numbers_at_the_edge_are_no_fault(gateway: Any, number: str) -> None:
    for name in ("market_forecast", "credit_risk", "text_generation", "image_classification"):
        sample = gateway.client.get(f"/scenarios/{name}").json()["sample"]
        for field, value in sample.items():
            hurt = [number] * 100 if isinstance(value, list) else number
            body = json.dumps({**sample, field: "?"}).replace('"?"', f"[{', '.join(hurt)}]" if isinstance(value, list) else number)
            answer = gateway.client.post(f"/scenarios/{name}/predict", content=body)
            assert answer.status_code in (200, 400, 422), (name, field, answer.text)
            json.loads(answer.content, parse_constant=no_number)


@pytest.mark.parametrize("text", ["\0", "\u202e" * 5000, "\U0010ffff", "a\u0301" * 20_000, " " * 100_000, "\n" * 100_000, "𝕳" * 30_000, "好" * 200_000, ""])
@pytest.mark.parametrize("name", TEXTS)
def test_text_of_any_kind_is_no_fault(gateway: Any, name: str, text: str) -> None:
    answer = gateway.client.post(f"/scenarios/{name}/predict", json={"text": text}, timeout=40)
    assert answer.status_code in (200, 400, 422, 504), answer.text[:500]


# ── size, coding, headers, the wire ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("name", ["fraud_text", "image_classification"])
def test_100_mb_are_refused_before_they_are_read(gateway: Any, name: str) -> None:
    with socket.create_connection(("127.0.0.1", httpx.URL(gateway.url).port), 10) as client:
        client.sendall(b"POST /scenarios/%s/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n{" % name.encode())
        assert client.recv(65_536).startswith(b"HTTP/1.1 413")
    for ending in ("predict", "jobs"):
        answer = httpx.post(f"{gateway.url}/scenarios/{name}/{ending}", content=(b"x" * 65_536 for _ in range(1600)), timeout=30)
        assert refused(answer, 413)["code"] == "SCN-4012"


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x"])
def test_packed_bodies_are_not_unpacked(gateway: Any, coding: str) -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    for ending in ("predict", "predict/batch", "jobs"):
        answer = gateway.client.post(f"/scenarios/fraud_text/{ending}", content=bomb, headers={"Content-Encoding": coding, "Content-Type": "application/json"})
        assert refused(answer, 415)["code"] == "SCN-4113"
        assert answer.headers["accept-encoding"] == "identity"
    plain = gateway.client.post("/scenarios/fraud_text/predict", json={"text": "x"}, headers={"Content-Encoding": "identity"})
    assert plain.status_code == 200


def talk(gateway: Any, data: bytes, *more: bytes) -> bytes:
    """What comes back for raw bytes, until the gateway closes or is silent for 6 s."""
    with socket.create_connection(("127.0.0.1", httpx.URL(gateway.url).port), 10) as client:
        client.settimeout(6)
        found = b""
        try:
            client.sendall(data)
            for piece in more:
                client.sendall(piece)
            while part := client.recv(65_536):
                found += part
        except (ConnectionError, TimeoutError):
            pass
        return found


POST = b"POST /scenarios/fraud_text/predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
WIRE = {
    "many headers": (POST + b"".join(b"X-%d: y\r\n" % n for n in range(20_000)) + b"\r\n", b"431"),
    "a long header": (POST + b"X: " + b"y" * 200_000 + b"\r\n\r\n", b"431"),
    "a long path": (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n", b"431"),
    "a long name": (b"POST /scenarios/" + b"a" * 60_000 + b"/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", b"404"),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", b"400"),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n", b"400"),
    "a length that is no number": (POST + b"Content-Length: 1e3\r\n\r\n", b"400"),
    "a length of 30 digits": (POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", b"400"),
    "length and chunks": (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
    "a chunk that is no number": (POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", b"400"),
    "a chunk of 2^70": (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 18 + b"\r\n", b"400"),
    "gzip as transfer": (POST + b"Transfer-Encoding: gzip\r\n\r\n", b"400"),
    "a body that is too short": (POST + b"Content-Length: 1000\r\n\r\n{}", b"408"),
    "chunks without an end": (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", b"408"),
    "a path of bytes": (b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
    "a path that climbs": (b"GET /docs/..%2f..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"404"),
    "a broken escape": (b"GET /scenarios/%zz%e4%bd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"404"),
    "a header of bytes": (POST + b"X-Scenarium-Key: \xff\xfe\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", b"422"),
    "a header with a line end": (POST + b"X-Request-Id: a\nSet-Cookie: b\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", b"4"),
    "tls": (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", b"400"),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
    "another protocol": (b"SSH-2.0-OpenSSH\r\n", b"400"),
}


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("what", WIRE)
def test_the_wire(gateway: Any, what: str) -> None:
    data, status = WIRE[what]
    answer = talk(gateway, data)
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
    assert b"Set-Cookie" not in answer


def test_a_form_of_pieces_and_a_boundary_that_is_none(gateway: Any, cheap: None) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\nx\r\n'
    for body, kind in (
        (part * 100_000, "multipart/form-data; boundary=x"),
        (part, "multipart/form-data"),
        (part, "multipart/form-data; boundary=" + "y" * 2000),
    ):
        refused(gateway.client.post("/scenarios/fraud_text/predict", content=body, headers={"Content-Type": kind}))


def test_blanks_without_end_take_no_memory(gateway: Any) -> None:
    def blanks(start: bytes, end: bytes) -> Iterator[bytes]:
        yield start
        for _ in range(1500):
            yield b" \n" * 32_768  # 100 MB
        yield end

    sample = json.dumps(gateway.client.get("/scenarios/fraud_text").json()["sample"]).encode()
    before = usage(gateway)
    for start, end, count in ((b"", b"[" + sample + b"]", 1), (b"[" + sample + b"]", b"", 1), (b'{"text": "x"}\n', b'{"text": "x"}', 2)):
        answer = httpx.post(f"{gateway.url}/scenarios/fraud_text/predict/batch", content=blanks(start, end), timeout=60)
        assert answer.status_code == 200, answer.text[:300]
        assert answer.headers["x-scenarium-items"] == str(count)
    after = usage(gateway)
    assert after[1] - before[1] < GROWTH
    assert after[0] - before[0] < 30  # 300 MB went through, at 10 ms each on a quiet machine


def test_pictures_below_the_limit_do_not_add_up(gateway: Any) -> None:
    # 25 megapixels each, 25 kB packed: they are unpacked one after another, whatever a batch holds.
    items = [{"image": base64.b64encode(png(5000, 5000)).decode()}] * 8
    assert gateway.client.post("/scenarios/image_classification/predict", json=items[0], timeout=60).status_code == 200  # a worker keeps the pages of one
    before = usage(gateway)[1]
    answer = gateway.client.post("/scenarios/image_classification/predict/batch", json=items, timeout=60)
    assert answer.headers["x-scenarium-errors"] == "0"
    assert usage(gateway)[1] - before < 3 * 75_000_000  # one picture takes 75 MB


# ── pickles ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.trace}",))


def pickled(trace: Path, form: str) -> bytes:
    if form == "pickle":
        return pickle.dumps(Evil(trace))
    import torch

    buffer = io.BytesIO()
    torch.save({"weights": Evil(trace)}, buffer)  # a zip with a pickle in it
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["pickle", "torch.save"])
@pytest.mark.parametrize("name", versions_of_plugins.ROWS)
def test_a_pickle_in_the_store_is_never_run(gateway: Any, shared_lab: Any, watch: Path, tmp_path: Path, name: str, form: str) -> None:
    """Whoever can write to the store, manifest and hashes included, cannot have code run: a file that should be weights is read as weights alone."""
    store, trace = shared_lab.store, tmp_path / "trace"
    good = store.open(name, 1)
    with store.draft(name) as draft:
        shutil.copytree(good.folder, draft, dirs_exist_ok=True)
        weights = [path for path in draft.rglob("*") if path.is_file() and path.name != "manifest.json" and path.suffix not in (".html", ".png", ".svg")]
        for path in weights:
            path.unlink()
            path.write_bytes(pickled(trace, form))
        planted = store.commit(name, draft, good.manifest.model_copy(deep=True))
    store.set_alias(name, PRODUCTION, planted.number, "planted")
    wanted = {"scenario": name, "version": planted.number, "level": "error"}
    shared_lab.until(lambda: any(wanted.items() <= event.items() for event in list(gateway.events)), 60)
    assert not trace.exists()
    assert not [line for line in watch.read_text().splitlines() if line.startswith("pickle")]
    sample = gateway.client.get(f"/scenarios/{name}").json()["sample"]
    answer = gateway.client.post(f"/scenarios/{name}/predict", json=sample)
    assert answer.status_code == 200
    assert answer.headers["x-scenarium-version"] == "1"
    store.set_alias(name, PRODUCTION, 1, "back")


def test_no_process_that_serves_has_loaded_a_pickle(gateway: Any, watch: Path) -> None:
    """After all that this file did, bodies that are pickles among it."""
    seen = watch.read_text().splitlines()
    watched = {int(line.split()[-1]) for line in seen if line.startswith("watched")}
    assert gateway.popen.pid in watched
    assert len(watched & gateway.processes()) >= 3  # the gateway and both zygotes; workers are forked from them
    assert not [line for line in seen if line.startswith("pickle")]
    # The watch sees what it should: the same in an interpreter of its own.
    subprocess.run([sys.executable, "-c", "import pickle, os; pickle.loads(pickle.dumps(os.getpid))"], check=True)
    assert [line for line in watch.read_text().splitlines() if line.startswith("pickle")]
