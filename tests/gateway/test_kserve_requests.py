"""The v2 protocol's requests as no good client would send them; who may call; deadlines, batches and faults below it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from scenarium.core.config import GatewayConfig
from scenarium.core.errors import ScenariumError
from scenarium.gateway.keys import KeyFile
from scenarium.gateway.kserve import rpc
from tests.gateway.v2_servers import TENSORS, arrays, expected, inputs_of, request_of, same, start_gateway

INFER = "/v2/models/tensors/infer"
X, IDS = np.ones((1, 4), np.float32).tobytes(), np.ones((1, 2), np.int64).tobytes()
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def server(shared_lab):
    return start_gateway(shared_lab)


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=f"http://{server.http}", timeout=30) as found:
        yield found


def header(**changes):
    """A good header for one row, its tensors binary; ``x`` and ``ids`` change a tensor."""
    x = {"name": "X", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}} | changes.pop("x", {})
    ids = {"name": "IDS", "datatype": "INT64", "shape": [1, 2], "parameters": {"binary_data_size": 16}} | changes.pop("ids", {})
    return {"inputs": [x, ids]} | changes


def binary(value, data=X + IDS, length=None):
    """Body and headers of a binary request."""
    head = value if isinstance(value, bytes) else json.dumps(value).encode()
    return {"content": head + data, "headers": {LENGTH: str(len(head) if length is None else length)}}


def plain(**changes):
    """The same request with its tensors in JSON."""
    changes = {"x": {"data": [1, 1, 1, 1]}, "ids": {"data": [1, 1]}} | changes
    value = header(**changes)
    for tensor in value["inputs"]:
        del tensor["parameters"]
    return {"content": json.dumps(value).encode()}


def error_of(answer: httpx.Response) -> str:
    """The sentence of an error in the protocol's form."""
    assert answer.headers["content-type"] == "application/json"
    value = answer.json()
    assert list(value) == ["error"]
    return value["error"]


GOOD = {"binary": binary(header()), "json": plain(), "nested": plain(x={"data": [[1, 1, 1, 1]]}, ids={"data": [[1, 1]]})}
WRONG = {
    "length beyond the body": binary(header(), length=10_000),
    "length of no header": binary(header(), length=0),
    "negative length": binary(header(), length=-5),
    "length of no number": binary(header(), length="many"),
    "length too small": binary(header(), length=20),
    "length too large": binary(header(), length=len(json.dumps(header())) + 4),
    "cut off": binary(header(), (X + IDS)[:-1]),
    "no tensors": binary(header(), b""),
    "bytes left over": binary(header(), X + IDS + b"1"),
    "size and shape differ": binary(header(x={"shape": [1, 4], "parameters": {"binary_data_size": 12}}), X[:12] + IDS),
    "negative size": binary(header(x={"parameters": {"binary_data_size": -16}})),
    "size of no number": binary(header(x={"parameters": {"binary_data_size": "16"}})),
    "truth as a size": binary(header(x={"parameters": {"binary_data_size": True}})),
    "huge size": binary(header(x={"parameters": {"binary_data_size": 2**70}})),
    "negative axis": binary(header(x={"shape": [-1, 4]})),
    "huge axis": binary(header(x={"shape": [2**62, 4]})),
    "axis of no number": binary(header(x={"shape": [1.0, 4]})),
    "truth as an axis": binary(header(x={"shape": [True, 4]})),
    "no rows": binary(header(x={"shape": [0, 4], "parameters": {"binary_data_size": 0}}, ids={"shape": [0, 2], "parameters": {"binary_data_size": 0}}), b""),
    "too many axes": binary(header(x={"shape": [1, 4] + [1] * 1000})),
    "shape of no list": binary(header(x={"shape": "1,4"})),
    "no shape": binary(header(x={"shape": None})),
    "unknown datatype": binary(header(x={"datatype": "FP7"})),
    "datatype of no string": binary(header(x={"datatype": {"a": 1}})),
    "other datatype": binary(header(x={"datatype": "INT32"})),
    "unknown input": binary(header(x={"name": "Z"})),
    "input twice": binary(header(ids={"name": "X"})),
    "name of no string": binary(header(x={"name": ["X"]})),
    "ten thousand inputs": plain(inputs=[{"name": f"i{n}", "datatype": "FP32", "shape": [1], "parameters": {}} for n in range(10_000)]),
    "no inputs": binary({"inputs": []}, b""),
    "inputs of no list": binary({"inputs": {"X": 1}}, b""),
    "inputs of no objects": binary({"inputs": [1, 2]}, b""),
    "one input": binary({"inputs": header()["inputs"][:1]}, X),
    "parameters of no object": binary(header(parameters=[1])),
    "parameters of a tensor of no object": binary(header(x={"parameters": "many"})),
    "outputs of no list": binary(header(outputs={"name": "SUMS"})),
    "unknown output": binary(header(outputs=[{"name": "NOTHING"}])),
    "output of no object": binary(header(outputs=[7])),
    "classes of no number": binary(header(outputs=[{"name": "SUMS", "parameters": {"classification": "two"}}])),
    "id of no string": binary(header(id=7)),
    "priority of no number": binary(header(parameters={"priority": "high"})),
    "negative timeout": binary(header(parameters={"timeout": -1})),
    "unknown region": binary(header(x={"parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 16}}), IDS),
    "no JSON": binary(b"{" * 50, b""),
    "deep JSON": {"content": b"[" * 100_000},
    "JSON of another kind": {"content": b"[1, 2]"},
    "no text": {"content": b"\xff\xfe\x00"},
    "nothing": {"content": b""},
    "too few values": plain(x={"data": [1, 1, 1]}),
    "too many values": plain(x={"data": [1] * 5}),
    "ragged values": plain(x={"data": [[1, 1], [1]]}),
    "values of no number": plain(x={"data": ["a", "b", "c", "d"]}),
    "objects as values": plain(x={"data": [{}, {}, {}, {}]}),
    "null as a value": plain(x={"data": [1, 1, 1, None]}),
    "fractions as whole numbers": plain(ids={"data": [1.5, 2]}),
    "whole numbers beyond their type": plain(ids={"data": [2**63, 1]}),
    "huge whole numbers": plain(ids={"data": [10**400, 1]}),
    "truth as numbers": plain(ids={"data": [True, False]}),
    "data of no list": plain(x={"data": 1}),
    "unknown coding": binary(header()) | {"headers": {"Content-Encoding": "br"}},
    "no gzip": {"content": b"nothing", "headers": {"Content-Encoding": "gzip"}},
    "half a gzip": {"content": gzip.compress(plain()["content"])[:-9], "headers": {"Content-Encoding": "gzip"}},
}


@pytest.mark.parametrize("kind", GOOD)
def test_good_requests(http, kind):
    answer = http.post(INFER, **GOOD[kind])
    assert answer.status_code == 200
    assert [each["data"] for each in answer.json()["outputs"]] == [[4.0, 1.0], [2], [True] * 4]
    assert answer.headers["x-scenarium-version"] == "1"


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_requests_are_refused_in_the_protocols_form(http, kind):
    answer = http.post(INFER, **WRONG[kind])
    assert answer.status_code == 400, answer.text
    assert len(error_of(answer)) < 1000


def test_altered_requests_never_are_the_servers_fault(http):
    dice = random.Random(1)
    good = GOOD["binary"]
    for _ in range(300):
        content = bytearray(good["content"])
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(content))
            content[place : place + dice.randint(0, 3)] = dice.randbytes(dice.randint(0, 3))
        answer = http.post(INFER, content=bytes(content), headers=good["headers"])
        assert answer.status_code in (200, 400, 422)
        if answer.status_code != 200:
            error_of(answer)


def test_bytes_tensors_that_do_not_fit(http):
    tensor = {"name": "REQUEST", "datatype": "BYTES", "shape": [1]}
    for size, data in ((4, b"\xff\xff\xff\xff"), (3, b"\0\0\0"), (8, b"\1\0\0\0{\0\0\0"), (0, b"")):
        value = {"inputs": [tensor | {"parameters": {"binary_data_size": size}}]}
        assert http.post("/v2/models/unit.predict/infer", **binary(value, data)).status_code == 400
    for data in ([1], [["a", "b"]], [None], "x"):
        assert http.post("/v2/models/unit.predict/infer", json={"inputs": [tensor | {"data": data}]}).status_code == 400
    answer = http.post("/v2/models/unit.predict/infer", json={"inputs": [tensor | {"data": ['{"text": "a", "do": "raise"}']}]})
    assert answer.status_code == 500
    assert "SCN-4003" in error_of(answer)


def test_paths_and_methods(http):
    cases = {
        ("GET", INFER): 400,
        ("POST", "/v2"): 400,
        ("GET", "/v2/nothing"): 404,
        ("GET", "/v2/models"): 404,
        ("GET", "/v2/models/tensors/nothing"): 404,
        ("GET", "/v2/models/tensors/versions/2"): 404,
        ("POST", "/v2/models/nothing/infer"): 404,
        ("GET", "/v2/models/nothing/ready"): 400,
        ("POST", "/v2/cudasharedmemory/region/r/register"): 501,
        ("POST", "/v2/systemsharedmemory/region/r/register"): 400,
        ("GET", "/v2/systemsharedmemory/region/r/status"): 400,
    }
    for (method, path), status in cases.items():
        answer = http.request(method, path)
        assert (method, path, answer.status_code) == (method, path, status)
        error_of(answer)
    assert http.get("/v2/").json() == http.get("/v2").json()
    assert http.get("/v2/models/tensors/versions/1/config").json()["max_batch_size"] == 8
    loaded = http.post("/v2/repository/models/tensors/load", json={"parameters": {"config": "{}"}})
    assert loaded.status_code == 501


def test_shared_memory_keys_stay_where_shared_memory_is(http):
    for key in ("/../etc/passwd", "..", "", "/", "a/b", "/\0"):
        answer = http.post("/v2/systemsharedmemory/region/r/register", json={"key": key, "byte_size": 8})
        assert answer.status_code == 400
        assert "key" in error_of(answer)


def test_bodies_are_bounded_before_and_after_they_are_unpacked(lab):
    server = start_gateway(lab, "scenarios.tensors.serve.max_body_bytes=100_000")
    with httpx.Client(base_url=f"http://{server.http}") as http:
        assert http.post(INFER, content=b"x" * 100_001).status_code == 413
        assert http.post(INFER, content=gzip.compress(b" " * 10_000_000), headers={"Content-Encoding": "gzip"}).status_code == 413
        packed = zlib.compress(plain()["content"])
        assert http.post(INFER, content=packed, headers={"Content-Encoding": "deflate"}).status_code == 200
        wide = arrays(8, 2000)
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client, pytest.raises(InferenceServerException, match="RESOURCE_EXHAUSTED"):
            client.infer("tensors", inputs_of(tritonclient.grpc, wide))


def test_large_answers_are_packed_for_who_accepts_it(http):
    request = {"inputs": [{"name": "REQUEST", "datatype": "BYTES", "shape": [1], "data": [json.dumps({"text": "a" * 5000})]}]}
    for coding in ("gzip", "deflate"):
        answer = http.post("/v2/models/unit.predict/infer", json=request, headers={"Accept-Encoding": coding})
        assert answer.headers["content-encoding"] == coding
        assert "a" * 5000 in answer.json()["outputs"][0]["data"][0]
    answer = http.post("/v2/models/unit.predict/infer", json=request, headers={"Accept-Encoding": "identity, gzip;q=0"})
    assert "content-encoding" not in answer.headers


# ── gRPC's own mistakes ───────────────────────────────────────────────────────────────────────────────────────────────


def message(raw=(X, IDS), **changes) -> service_pb2.ModelInferRequest:
    made = service_pb2.ModelInferRequest(model_name="tensors", raw_input_contents=raw)
    made.inputs.add(name="X", datatype="FP32", shape=[1, 4])
    made.inputs.add(name="IDS", datatype="INT64", shape=[1, 2])
    for place, more in changes.items():
        made.inputs[int(place[1:])].MergeFrom(service_pb2.ModelInferRequest.InferInputTensor(**more))
    return made


def test_messages_that_do_not_fit(server):
    channel = grpc.insecure_channel(server.grpc)
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    typed = {
        "i0": {"contents": service_pb2.InferTensorContents(fp32_contents=[1, 1, 1, 1])},
        "i1": {"contents": service_pb2.InferTensorContents(int64_contents=[1, 1])},
    }
    for good in (message(), message((), **typed)):
        assert [each.name for each in stub.ModelInfer(good).outputs] == ["SUMS", "COUNT", "ODD"]
    wrong = [
        message((X,)),
        message((X, IDS, IDS)),
        message((X[:-1], IDS)),
        message(()),
        message((), i0=typed["i0"], i1={"contents": service_pb2.InferTensorContents(int64_contents=[1])}),
        message(i0={"datatype": "FP7"}),
        message((), i0={"datatype": "FP16"}, i1=typed["i1"]),
        message(i0={"shape": [-1]}),
        service_pb2.ModelInferRequest(model_name="tensors"),
    ]
    many = service_pb2.ModelInferRequest(model_name="tensors")
    for number in range(10_000):
        many.inputs.add(name=f"i{number}", datatype="INT8", shape=[1]).contents.int_contents.append(1)
    beyond = service_pb2.ModelInferRequest(model_name="tensors")
    beyond.inputs.add(name="X", datatype="INT8", shape=[1]).contents.int_contents.append(1000)
    for request in (*wrong, many, beyond):
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request, timeout=20)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    for call, request in ((stub.TraceSetting, service_pb2.TraceSettingRequest()), (stub.LogSettings, service_pb2.LogSettingsRequest())):
        with pytest.raises(grpc.RpcError) as caught:
            call(request)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    told = list(stub.ModelStreamInfer(iter([message((X,)), service_pb2.ModelInferRequest(model_name="unit.stream", id="s")])))
    assert all(each.error_message.startswith("SCN-4201") for each in told)
    assert {each.infer_response.id for each in told} == {"", "s"}
    channel.close()


# ── deadlines, batches, faults ────────────────────────────────────────────────────────────────────────────────────────


def wish(number: int, rows: int = 1) -> dict[str, np.ndarray]:
    """Inputs that ask the forward for something."""
    return {"X": np.ones((rows, 4), np.float32), "IDS": np.full((rows, 2), number)}


def test_deadlines(server):
    slow = wish(TENSORS.SLEEP)
    with tritonclient.http.InferenceServerClient(server.http) as client:
        with pytest.raises(InferenceServerException) as caught:
            client.infer("tensors", inputs_of(tritonclient.http, slow), timeout=50_000)
        assert caught.value.status() == "504"
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        for late in ({"timeout": 50_000}, {"client_timeout": 0.05}, {"headers": {"x-scenarium-deadline-ms": "50"}}):
            with pytest.raises(InferenceServerException) as caught:
                client.infer("tensors", inputs_of(tritonclient.grpc, slow), **late)
            assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        same(client.infer("tensors", inputs_of(tritonclient.grpc, arrays())), expected(arrays()))


def test_a_call_that_is_cancelled_is_not_run(server):
    async def run():
        async with tritonclient.grpc.aio.InferenceServerClient(server.grpc) as client:
            first = asyncio.create_task(client.infer("tensors", inputs_of(tritonclient.grpc.aio, wish(TENSORS.SLEEP))))
            await asyncio.sleep(0.1)
            second = asyncio.create_task(client.infer("tensors", inputs_of(tritonclient.grpc.aio, wish(TENSORS.KILL))))
            await asyncio.sleep(0.05)
            second.cancel()
            await first
            same(await client.infer("tensors", inputs_of(tritonclient.grpc.aio, arrays())), expected(arrays()))

    restarts = server.process.client.get("/admin/status").json()
    asyncio.run(run())
    after = server.process.client.get("/admin/status").json()
    assert [each["restarts"] for each in after["scenarios"]] == [each["restarts"] for each in restarts["scenarios"]]


def test_requests_of_one_shape_run_together(server):
    def ask(rows):
        with tritonclient.http.InferenceServerClient(server.http, network_timeout=30) as client:
            return client.infer("tensors", inputs_of(tritonclient.http, wish(TENSORS.RUN, rows))).as_numpy("COUNT")

    with tritonclient.http.InferenceServerClient(server.http) as client, ThreadPoolExecutor(12) as pool:
        client.async_infer("tensors", inputs_of(tritonclient.http, wish(TENSORS.SLEEP)))
        time.sleep(0.1)
        counts = list(pool.map(ask, [1, 2, 3] * 4))
    for rows, count in zip([1, 2, 3] * 4, counts, strict=True):
        assert count.shape == (rows, 1)
        assert rows <= count.max() <= 8
    assert max(count.max() for count in counts) > 3


def test_failures_are_counted(server):
    # Triton's python backend counts an answer that is an error as a success, so this is no test of both servers.
    with tritonclient.http.InferenceServerClient(server.http) as client:

        def figures():
            return client.get_inference_statistics("tensors")["model_stats"][0]["inference_stats"]

        before = figures()
        for number in (TENSORS.RAISE, TENSORS.RAISE, 1):
            with contextlib.suppress(InferenceServerException):
                client.infer("tensors", inputs_of(tritonclient.http, wish(number)))
        assert figures()["fail"]["count"] == before["fail"]["count"] + 2
        assert figures()["success"]["count"] == before["success"]["count"] + 1


def test_what_kills_a_worker_fails_alone(server):
    def ask(number):
        with tritonclient.http.InferenceServerClient(server.http, network_timeout=60) as client:
            return client.infer("tensors", inputs_of(tritonclient.http, wish(number))).as_numpy("COUNT").tolist()

    with ThreadPoolExecutor(6) as pool:
        poison = pool.submit(ask, TENSORS.KILL)
        neighbours = [pool.submit(ask, number) for number in range(1, 6)]
        with pytest.raises(InferenceServerException, match="SCN-4009"):
            poison.result(60)
        assert [each.result(60) for each in neighbours] == [[[2 * number]] for number in range(1, 6)]


def test_unloading_answers_what_was_accepted(server):
    address = server.http
    found = []

    def slow():
        with tritonclient.http.InferenceServerClient(address, network_timeout=30) as client:
            found.append(client.infer("tensors", inputs_of(tritonclient.http, wish(TENSORS.SLEEP))))

    thread = threading.Thread(target=slow)
    thread.start()
    time.sleep(0.1)
    with tritonclient.http.InferenceServerClient(address) as client:
        client.unload_model("tensors")
        thread.join()
        assert len(found) == 1
        with pytest.raises(InferenceServerException) as caught:
            client.infer("tensors", inputs_of(tritonclient.http, arrays()))
        assert caught.value.status() == "503"
        assert server.process.client.post("/scenarios/tensors/predict", json={"x": [1, 2, 3, 4]}).json()["code"] == "SCN-4208"
        assert server.process.client.get("/scenarios/tensors/ready").status_code == 503
        index = {each["name"]: each for each in client.get_model_repository_index()}
        assert "unloaded" in index["tensors"]["reason"]
        client.load_model("tensors.predict")  # they are one scenario
        client.load_model("tensors")
        same(client.infer("tensors", inputs_of(tritonclient.http, arrays())), expected(arrays()))


# ── who may ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_keys_decide_as_everywhere(lab):
    file = KeyFile(lab.folder / "keys.sqlite")
    tensors, other, admin = (
        file.create(**options)[1] for options in ({"scenarios": frozenset({"tensors"})}, {"scenarios": frozenset({"unit"})}, {"admin": True})
    )
    server = start_gateway(lab, f'gateway.audit="{lab.folder / "audit.jsonl"}"')
    values = arrays()
    for module, address, codes in (
        (tritonclient.http, server.http, ("401", "403")),
        (tritonclient.grpc, server.grpc, ("StatusCode.UNAUTHENTICATED", "StatusCode.PERMISSION_DENIED")),
    ):
        with module.InferenceServerClient(address) as client:
            assert client.is_server_live()
            inputs = inputs_of(module, values)
            same(client.infer("tensors", inputs, headers={"authorization": f"Bearer {tensors}"}), expected(values))
            same(client.infer("tensors", inputs, headers={"x-api-key": tensors}), expected(values))
            for call, options, status in (
                (client.infer, {"model_name": "tensors", "inputs": inputs}, codes[0]),
                (client.infer, {"model_name": "tensors", "inputs": inputs, "headers": {"x-api-key": other}}, codes[1]),
                (client.infer, {"model_name": "nothing", "inputs": inputs}, codes[0]),
                (client.infer, {"model_name": "nothing", "inputs": inputs, "headers": {"x-api-key": other}}, codes[1]),
                (client.get_server_metadata, {}, codes[0]),
                (client.unload_model, {"model_name": "tensors", "headers": {"x-api-key": tensors}}, codes[1]),
                (client.register_system_shared_memory, {"name": "r", "key": "k", "byte_size": 1, "headers": {"x-api-key": tensors}}, codes[1]),
            ):
                with pytest.raises(InferenceServerException) as caught:
                    call(**options)
                assert caught.value.status() == status
            client.unload_model("unit", headers={"x-api-key": admin})
            client.load_model("unit", headers={"x-api-key": admin})
    server.process.stop()
    lines = [json.loads(line) for line in (lab.folder / "audit.jsonl").read_text().splitlines()]
    done = [line for line in lines if line["scenario"] == "tensors"]
    assert [(line["status"], line["version"]) for line in done] == [(200, 1)] * 4
    assert {line["method"] for line in done} == {"POST", "GRPC"}
    assert all(line["body"] and line["answer"] for line in done)


def test_a_foreign_page_controls_nothing(http):
    for path in ("/v2/repository/models/unit/unload", "/v2/systemsharedmemory/unregister"):
        assert http.post(path, headers={"Origin": "https://evil.example"}).status_code == 403
        assert http.post(path, headers={"Host": "evil.example"}).status_code == 403
    assert http.post("/v2/systemsharedmemory/unregister", headers={"Origin": str(http.base_url).rstrip("/")}).status_code == 200


# ── the port ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_the_extra_grpc_tells_how_to_install_it():
    code = """
import sys
sys.modules["tritonclient"] = None
from scenarium.core.config import GatewayConfig
from scenarium.core.errors import ScenariumError
from scenarium.gateway.kserve import rpc
rpc.check(GatewayConfig())
try:
    rpc.check(GatewayConfig(grpc_port=0))
except ScenariumError as fault:
    print(fault.code, fault.hint())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("SCN-4206")
    assert "scenarium[triton]" in done.stdout


def test_a_port_that_is_taken(server):
    host, port = server.grpc.split(":")
    with pytest.raises(ScenariumError) as caught:
        rpc.check(GatewayConfig(host=host, grpc_port=int(port)))
    assert caught.value.code == "SCN-4207"


def test_streams_end_when_the_client_leaves(server, tmp_path):
    trail = tmp_path / "trail"
    client = tritonclient.grpc.InferenceServerClient(server.grpc)
    came = threading.Event()
    client.start_stream(lambda result, error: came.set())
    request = json.dumps({"text": "a", "n": 10_000, "seconds": 0.01, "trail": str(trail)})
    client.async_stream_infer("unit.stream", request_of(tritonclient.grpc, request))
    assert came.wait(10)
    client.stop_stream(cancel_requests=True)
    client.close()
    until = time.monotonic() + 10
    while not trail.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    assert trail.read_text() == "closed\n"
