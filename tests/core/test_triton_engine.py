"""The Triton engine against a server of its protocol that says what a Triton seldom says: nothing, other tensors, too late. And the breaker alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server

from scenarium.core.calls import CALL, Call, Served
from scenarium.core.config import ServeConfig
from scenarium.core.engines.breaker import Breaker
from scenarium.core.engines.triton_engine import TritonEngine
from scenarium.core.errors import ScenariumError
from scenarium.core.types import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("X", "float32", (2,)),), (TensorSpec("Y", "float32", (2,)),))


class Odd(GRPCInferenceServiceServicer):
    """A server with one model of one input and one output."""

    def __init__(self) -> None:
        self.ready, self.datatype, self.wait = True, "FP32", 0.0
        self.asked = 0

    def ServerLive(self, request, context):
        return pb.ServerLiveResponse(live=True)

    def ModelReady(self, request, context):
        return pb.ModelReadyResponse(ready=self.ready)

    def RepositoryModelLoad(self, request, context):
        self.asked += 1
        context.abort(grpc.StatusCode.INTERNAL, "")

    def ModelMetadata(self, request, context):
        tensors = [pb.ModelMetadataResponse.TensorMetadata(name=name, datatype=self.datatype) for name in "XY"]
        return pb.ModelMetadataResponse(inputs=tensors[:1], outputs=tensors[1:])

    def ModelInfer(self, request, context):
        time.sleep(self.wait)
        if not self.ready:
            context.abort(grpc.StatusCode.UNAVAILABLE, "")
        answer = pb.ModelInferResponse(raw_output_contents=request.raw_input_contents)
        answer.outputs.add(name="Y", datatype="FP32", shape=request.inputs[0].shape)
        return answer


@pytest.fixture
def server() -> Iterator[tuple[Odd, Served]]:
    odd, pool = Odd(), ThreadPoolExecutor(2)
    found = grpc.server(pool)
    add_GRPCInferenceServiceServicer_to_server(odd, found)
    port = found.add_insecure_port("127.0.0.1:0")
    found.start()
    yield odd, Served("odd", 1, ServeConfig(engine="triton", triton_url=f"127.0.0.1:{port}"))
    found.stop(0).wait()
    pool.shutdown()


def test_a_fault_without_a_word_is_told_by_its_code(server) -> None:
    odd, served = server
    odd.ready = False
    with pytest.raises(ScenariumError) as refused:
        TritonEngine(served, SIGNATURE)
    assert refused.value.code == "SCN-6052"
    assert refused.value.values["reason"] == "INTERNAL"


def test_other_tensors_are_named(server) -> None:
    odd, served = server
    odd.datatype = "INT64"
    with pytest.raises(ScenariumError, match="INT64") as refused:
        TritonEngine(served, SIGNATURE)
    assert refused.value.code == "SCN-6055"


def test_it_answers_again_after_faults_without_a_word(server) -> None:
    odd, served = server
    engine = TritonEngine(served, SIGNATURE)
    rows = {"X": np.ones((1, 2), np.float32)}
    assert engine(rows)["Y"].tolist() == [[1, 1]]
    odd.ready = False
    with pytest.raises(ScenariumError) as refused:
        engine(rows)
    assert refused.value.code == "SCN-6050"
    deadline = time.monotonic() + 10
    while odd.asked < 2 and time.monotonic() < deadline:  # the breaker's thread goes on looking
        time.sleep(0.02)
    assert odd.asked >= 2
    odd.ready = True
    while engine.breaker.state != "closed" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert engine(rows)["Y"].tolist() == [[1, 1]]
    engine.close()


def test_no_answer_in_the_time_that_is_left(server) -> None:
    odd, served = server
    engine = TritonEngine(served, SIGNATURE)
    odd.wait = 0.5
    for seconds in (0.1, 0.0):
        token = CALL.set(Call([1], time.monotonic() + seconds))
        try:
            with pytest.raises(ScenariumError) as late:
                engine({"X": np.ones((1, 2), np.float32)})
        finally:
            CALL.reset(token)
        assert late.value.code == "SCN-6054"
    assert engine.figures() == {"calls": {"deadline": 2}, "breaker": "closed"}
    engine.close()


def test_a_fault_of_any_kind_does_not_end_the_looking() -> None:
    faults: list[Exception] = [ScenariumError("SCN-6050", url="there", reason="gone"), IndexError("list index out of range")]
    back = threading.Event()

    def mend(state: str) -> None:
        if faults:
            raise faults.pop()
        back.set()

    breaker = Breaker(mend)
    breaker.trip("open", ScenariumError("SCN-6050", url="there", reason="gone"))
    with pytest.raises(ScenariumError):
        breaker.check()
    assert back.wait(10)
    deadline = time.monotonic() + 5
    while breaker.state != "closed" and time.monotonic() < deadline:
        time.sleep(0.01)
    breaker.check()
