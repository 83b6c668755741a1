"""The v2 protocol with unmodified Triton clients. Every test runs against each server that ``server`` can start, with the same results."""

from __future__ import annotations

import asyncio
import json
import platform
import queue
import sys
import uuid
from functools import partial

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
import tritonclient.utils.shared_memory as shm
from google.protobuf.json_format import MessageToDict
from tritonclient.utils import InferenceServerException

from tests.gateway import perf_analyzer, triton
from tests.gateway.conftest import until
from tests.gateway.v2_servers import TENSORS, Server, arrays, expected, inputs_of, request_of, same, start_gateway

PROTOCOLS = {"http": tritonclient.http, "grpc": tritonclient.grpc}


@pytest.fixture(scope="module", params=["gateway", "triton"])
def server(request, shared_lab, tmp_path_factory):
    if request.param == "gateway":
        yield start_gateway(shared_lab)
        return
    if reason := triton.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("triton")
    found = triton.start(folder, triton.repository(folder / "models", TENSORS))
    yield Server("triton", found.http, found.grpc, found)
    found.stop()


@pytest.fixture(params=PROTOCOLS)
def protocol(request):
    return request.param


@pytest.fixture
def module(protocol):
    return PROTOCOLS[protocol]


@pytest.fixture
def client(server, protocol, module):
    with module.InferenceServerClient(getattr(server, protocol)) as found:
        yield found


def plain(value):
    """JSON values of an answer; gRPC's 64 bit numbers are strings there."""
    return value if isinstance(value, dict | list) else MessageToDict(value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def refused(call, *args, **options) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        call(*args, **options)
    return caught.value


# ── what there is ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_health(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tensors")
    assert client.is_model_ready("tensors", "1")
    assert not client.is_model_ready("tensors", "7")
    assert not client.is_model_ready("nothing")


def test_metadata(client):
    about = plain(client.get_server_metadata())
    assert {"binary_tensor_data", "system_shared_memory", "statistics", "classification"} <= set(about["extensions"])
    about = plain(client.get_model_metadata("tensors"))
    shapes = {each["name"]: (each["datatype"], [int(length) for length in each["shape"]]) for each in about["inputs"] + about["outputs"]}
    assert shapes == {"X": ("FP32", [-1, 4]), "IDS": ("INT64", [-1, -1]), "SUMS": ("FP32", [-1, 2]), "COUNT": ("INT64", [-1, 1]), "ODD": ("BOOL", [-1, 4])}
    assert about["versions"] == ["1"]
    about = plain(client.get_model_metadata("unit.predict"))
    assert [(each["name"], each["datatype"], [int(length) for length in each["shape"]]) for each in about["inputs"]] == [("REQUEST", "BYTES", [-1])]


def test_configuration(client):
    config = plain(client.get_model_config("tensors"))
    config = config.get("config", config)
    assert config["max_batch_size"] == 8
    assert [(each["name"], each["data_type"], [int(d) for d in each["dims"]]) for each in config["input"]] == [
        ("X", "TYPE_FP32", [4]),
        ("IDS", "TYPE_INT64", [-1]),
    ]
    config = plain(client.get_model_config("unit.stream"))
    assert config.get("config", config)["model_transaction_policy"]["decoupled"] is True


def test_unknown_models(client, module):
    for call in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
        assert refused(call, "nothing").status() in ("404", "400", "StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT")
    assert "unknown model" in refused(client.infer, "nothing", inputs_of(module, arrays())).message()


# ── inference ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_infer(client, module):
    values = arrays()
    result = client.infer("tensors", inputs_of(module, values), request_id="mine")
    same(result, expected(values))
    about = plain(result.get_response())
    assert (about["model_name"], about["model_version"], about["id"]) == ("tensors", "1", "mine")
    wanted = [module.InferRequestedOutput("COUNT")]
    result = client.infer("tensors", inputs_of(module, values), model_version="1", outputs=wanted, priority=1, timeout=5_000_000)
    same(result, {"COUNT": expected(values)["COUNT"]})
    assert result.as_numpy("SUMS") is None


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("length", [0, 1, 300])
def test_shapes(client, module, rows, length):
    values = arrays(rows, length)
    same(client.infer("tensors", inputs_of(module, values)), expected(values))


def test_json_tensors(server):
    values = arrays()
    with tritonclient.http.InferenceServerClient(server.http) as client:
        wanted = [tritonclient.http.InferRequestedOutput(name, binary_data=False) for name in ("SUMS", "COUNT", "ODD")]
        result = client.infer("tensors", inputs_of(tritonclient.http, values, binary_data=False), outputs=wanted)
        same(result, expected(values))
        assert all("data" in output for output in result.get_response()["outputs"])
        # one in binary, one in JSON, both ways
        mixed = inputs_of(tritonclient.http, {"X": values["X"]}) + inputs_of(tritonclient.http, {"IDS": values["IDS"]}, binary_data=False)
        wanted = [tritonclient.http.InferRequestedOutput("ODD", binary_data=True), tritonclient.http.InferRequestedOutput("SUMS", binary_data=False)]
        result = client.infer("tensors", mixed, outputs=wanted)
        same(result, {name: expected(values)[name] for name in ("ODD", "SUMS")})


def test_whole_requests_as_bytes(client, module):
    texts = ['{"text": "你好"}', '{"text": ""}']
    answers = [json.loads(answer) for answer in client.infer("unit.predict", request_of(module, *texts)).as_numpy("RESPONSE")]
    assert [(answer["text"], answer["answer"]) for answer in answers] == [("你好", "one"), ("", "one")]
    assert refused(client.infer, "unit.predict", request_of(module, '{"texts": 1}')).status() in ("400", "StatusCode.INVALID_ARGUMENT")


def test_bytes_in_json(server):
    with tritonclient.http.InferenceServerClient(server.http) as client:
        wanted = [tritonclient.http.InferRequestedOutput("RESPONSE", binary_data=False)]
        result = client.infer("unit.predict", request_of(tritonclient.http, '{"text": "漢"}', binary_data=False), outputs=wanted)
        assert json.loads(result.as_numpy("RESPONSE")[0])["text"] == "漢"


def test_classification(client, module):
    values = arrays() | {"X": np.array([[1, 2, 3, 4], [9, 0, 0, 0]], np.float32)}
    result = client.infer("tensors", inputs_of(module, values), outputs=[module.InferRequestedOutput("SUMS", class_count=2)])
    assert result.as_numpy("SUMS").tolist() == [[b"10.000000:0", b"4.000000:1"], [b"9.000000:0", b"9.000000:1"]]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression(server, coding):
    values = arrays(8, 3000)
    with tritonclient.http.InferenceServerClient(server.http) as client:
        packed = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
        same(client.infer("tensors", inputs_of(tritonclient.http, values), **packed), expected(values))
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        same(client.infer("tensors", inputs_of(tritonclient.grpc, values), compression_algorithm=coding), expected(values))


def test_many_at_once(server):
    with tritonclient.http.InferenceServerClient(server.http, concurrency=8) as client:
        many = [arrays(1 + seed % 3, 1 + seed % 2, seed) for seed in range(40)]
        waiting = [client.async_infer("tensors", inputs_of(tritonclient.http, values)) for values in many]
        for values, answer in zip(many, waiting, strict=True):
            same(answer.get_result(), expected(values))
    answers: queue.Queue = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        for number, values in enumerate(many):
            told = partial(lambda number, result, error: answers.put((number, result, error)), number)
            client.async_infer("tensors", inputs_of(tritonclient.grpc, values), told)
        for _ in many:
            number, result, error = answers.get(timeout=30)
            assert error is None
            same(result, expected(many[number]))


def test_asyncio_clients(server):
    async def run(module, address):
        async with module.InferenceServerClient(address) as client:
            assert await client.is_server_live()
            assert await client.is_model_ready("tensors")
            many = [arrays(1 + seed % 3, 2, seed) for seed in range(16)]
            results = await asyncio.gather(*(client.infer("tensors", inputs_of(module, values)) for values in many))
            for values, result in zip(many, results, strict=True):
                same(result, expected(values))
            with pytest.raises(InferenceServerException):
                await client.infer("tensors", inputs_of(module, {"X": many[0]["X"]}))

    asyncio.run(run(tritonclient.http.aio, server.http))
    asyncio.run(run(tritonclient.grpc.aio, server.grpc))


def test_streams_of_parts(server):
    got: queue.Queue = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: got.put((result, error)))
        client.async_stream_infer("unit.stream", request_of(tritonclient.grpc, '{"text": "a", "n": 4}'), request_id="parts", enable_empty_final_response=True)
        parts = []
        while True:
            result, error = got.get(timeout=20)
            assert error is None
            response = result.get_response()
            assert response.id == "parts"
            if response.parameters["triton_final_response"].bool_param:
                break
            parts.append(json.loads(result.as_numpy("RESPONSE")[0]))
        assert parts == [{"part": number, "text": "a"} for number in range(4)]
        # a model that answers at once, on the same stream
        values = arrays()
        client.async_stream_infer("tensors", inputs_of(tritonclient.grpc, values), request_id="whole")
        result, error = got.get(timeout=20)
        assert error is None
        same(result, expected(values))
        client.async_stream_infer("nothing", inputs_of(tritonclient.grpc, values), request_id="none")
        result, error = got.get(timeout=20)
        assert "unknown model" in error.message()
        client.stop_stream()
    with tritonclient.http.InferenceServerClient(server.http) as client:
        refused(client.infer, "unit.stream", request_of(tritonclient.http, '{"text": "a"}'))


def test_an_asyncio_stream(server):
    async def run():
        async def asked():
            for number in range(3):
                inputs = request_of(tritonclient.grpc.aio, json.dumps({"text": str(number), "n": 2}))
                yield {"model_name": "unit.stream", "inputs": inputs, "request_id": str(number), "enable_empty_final_response": True}

        found = {}
        async with tritonclient.grpc.aio.InferenceServerClient(server.grpc) as client:
            ended = 0
            async for result, error in client.stream_infer(asked()):
                assert error is None
                if result.get_response().parameters["triton_final_response"].bool_param:
                    ended += 1
                else:
                    found.setdefault(result.get_response().id, []).append(json.loads(result.as_numpy("RESPONSE")[0])["part"])
                if ended == 3:
                    break
        assert found == {"0": [0, 1], "1": [0, 1], "2": [0, 1]}

    asyncio.run(run())


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_wrong_tensors_are_the_clients_fault(client, module):
    good = arrays()
    wrong = [
        {"X": good["X"]},
        good | {"X": good["X"][:, :3]},
        good | {"X": good["X"][:1]},
        good | {"IDS": good["IDS"].astype(np.float32)},
        arrays(9),
    ]
    for values in wrong:
        assert refused(client.infer, "tensors", inputs_of(module, values)).status() in ("400", "StatusCode.INVALID_ARGUMENT")
    outputs = [module.InferRequestedOutput("NOTHING")]
    assert refused(client.infer, "tensors", inputs_of(module, good), outputs=outputs).status() in ("400", "StatusCode.INVALID_ARGUMENT")


def test_a_forward_that_raises_fails_alone(client, module):
    bad = arrays() | {"IDS": np.full((2, 3), TENSORS.RAISE)}
    good = arrays()
    assert refused(client.infer, "tensors", inputs_of(module, bad)).status() in ("500", "StatusCode.INTERNAL")
    same(client.infer("tensors", inputs_of(module, good)), expected(good))


# ── statistics, repository, shared memory ─────────────────────────────────────────────────────────────────────────────


def test_statistics_count_rows_and_runs(client, module):
    def figures():
        (found,) = plain(client.get_inference_statistics("tensors"))["model_stats"]
        return found

    before = figures()
    for _ in range(3):
        client.infer("tensors", inputs_of(module, arrays(2)))
    after = figures()

    def grew(*path):
        a, b = before, after
        for key in path:
            a, b = a[key], b[key]
        return int(b) - int(a)

    assert grew("inference_count") == 6
    assert grew("execution_count") >= 3
    assert grew("inference_stats", "success", "count") == 3
    assert grew("inference_stats", "queue", "count") >= 3
    assert grew("inference_stats", "success", "ns") > grew("inference_stats", "compute_infer", "ns") > 0
    assert any(int(each["batch_size"]) == 2 for each in after["batch_stats"])
    assert len(plain(client.get_inference_statistics())["model_stats"]) >= 3


def test_shared_memory(client, module):
    values, key = arrays(), f"/v2-{uuid.uuid4().hex}"
    wanted = expected(values)
    sizes = [values["X"].nbytes, values["IDS"].nbytes, wanted["SUMS"].nbytes]
    places = np.cumsum([0, *sizes]).tolist()
    region = shm.create_shared_memory_region("all", key, places[-1])
    try:
        shm.set_shared_memory_region(region, [values["X"]], offset=0)
        shm.set_shared_memory_region(region, [values["IDS"]], offset=places[1])
        client.register_system_shared_memory("all", key, places[-1])
        status = plain(client.get_system_shared_memory_status())
        names = [each["name"] for each in status] if isinstance(status, list) else list(status["regions"])
        assert names == ["all"]
        refused(client.register_system_shared_memory, "all", key, places[-1])
        inputs = inputs_of(module, values)
        inputs[0].set_shared_memory("all", sizes[0])
        inputs[1].set_shared_memory("all", sizes[1], offset=places[1])
        outputs = [module.InferRequestedOutput("SUMS"), module.InferRequestedOutput("COUNT")]
        outputs[0].set_shared_memory("all", sizes[2], offset=places[2])
        result = client.infer("tensors", inputs, outputs=outputs)
        same(result, {"COUNT": wanted["COUNT"]})
        found = shm.get_contents_as_numpy(region, np.float32, [2, 2], offset=places[2])
        np.testing.assert_array_equal(found, wanted["SUMS"])
        del found
        inputs[0].set_shared_memory("all", places[-1] + 1)  # beyond its end
        refused(client.infer, "tensors", inputs)
        client.unregister_system_shared_memory("all")
        inputs[0].set_shared_memory("all", sizes[0])
        refused(client.infer, "tensors", inputs)
        refused(client.register_system_shared_memory, "none", "/v2-which-does-not-exist", 64)
    finally:
        client.unregister_system_shared_memory()
        shm.destroy_shared_memory_region(region)


def test_the_repository(client, module):
    def states():
        found = plain(client.get_model_repository_index())
        return {each["name"]: each["state"] for each in (found if isinstance(found, list) else found["models"])}

    assert states()["tensors"] == "READY"
    client.unload_model("tensors")
    until(lambda: states()["tensors"] == "UNAVAILABLE")  # Triton's answer comes before the model is gone
    assert not client.is_model_ready("tensors")
    refused(client.infer, "tensors", inputs_of(module, arrays()))
    assert client.is_model_ready("unit.predict")
    client.load_model("tensors")
    assert states()["tensors"] == "READY"
    same(client.infer("tensors", inputs_of(module, arrays())), expected(arrays()))
    refused(client.load_model, "nothing")


# ── perf_analyzer ─────────────────────────────────────────────────────────────────────────────────────────────────────

for_linux = pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="NVIDIA's perf_analyzer is for Linux on x86-64")


@for_linux
@pytest.mark.parametrize("more", [(), ("--shared-memory", "system", "--output-shared-memory-size", "1024"), ("--async",)], ids=["plain", "shared", "async"])
def test_perf_analyzer(server, protocol, more):
    before = count_of(server)
    found = perf_analyzer.run(getattr(server, protocol), protocol, "tensors", "--shape", "IDS:3", "--input-data", "zero", *more, clients=2, window_ms=200)
    assert found.per_second > 1
    assert count_of(server) > before


@for_linux
def test_perf_analyzer_with_requests_of_bytes(server, protocol, tmp_path):
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"data": [{"REQUEST": {"content": ['{"text": "x"}'], "shape": [1]}}]}))
    more = ("--shape", "REQUEST:1", "--input-data", str(data))
    assert perf_analyzer.run(getattr(server, protocol), protocol, "unit.predict", *more, window_ms=200).per_second > 1


@for_linux
def test_perf_analyzer_tells_what_is_refused(server, protocol):
    with pytest.raises(AssertionError, match="unknown model"):
        perf_analyzer.run(getattr(server, protocol), protocol, "nothing")


def count_of(server) -> int:
    with tritonclient.http.InferenceServerClient(server.http) as client:
        (figures,) = client.get_inference_statistics("tensors")["model_stats"]
    return figures["inference_stats"]["success"]["count"]
