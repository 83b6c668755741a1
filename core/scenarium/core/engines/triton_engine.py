"""The Triton engine: the forward runs in a Triton Inference Server, asked by gRPC; pre- and postprocessing stay in the worker, which needs no torch.

The messages and the stub are tritonclient's. Calls block, which is the quickest form in Python (a future costs a third more), and each thread has a
connection of its own: closing it is how a call is cancelled. A large batch goes by shared memory where Triton is on the same host, which is found out
by trying.

Source: Triton's gRPC protocol (KServe v2 and the extensions "model repository" and "system shared memory").
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from scenarium.core.calls import CALL, SERVED, Served
from scenarium.core.engines.breaker import Breaker, State
from scenarium.core.engines.triton_memory import WORTH, Region
from scenarium.core.errors import ScenariumError
from scenarium.core.tensors import DATATYPES
from scenarium.core.types import Batch, Signature

LOOK_S, LOAD_S, POLL_S = 1.0, 300.0, 15.0
"""Most seconds that a look at the server may take, a load of a model, and a Triton that polls its repository until it has seen a new version."""
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a fresh connection is fresh, and does not wait as long as the last one was told to
    ("grpc.enable_http_proxy", 0),
]
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)
UNHEALTHY = "is not healthy"
"""What Triton says of a model whose process was killed. It stays so, and the model stays "ready", until it is unloaded and loaded again."""
UNKNOWN = ("unknown model", "is not ready", "not found", "no available versions", "is not at ready state")


class Line:
    """One thread's connection."""

    def __init__(self, url: str) -> None:
        self.channel = grpc.insecure_channel(url, options=OPTIONS)
        self.stub = GRPCInferenceServiceStub(self.channel)
        self.infer = self.stub.ModelInfer
        self.closed = False
        self.region: Region | None = None
        self.plain = False
        """Whether shared memory was tried in vain."""

    def close(self) -> None:
        """End it; what it waits for is cancelled, there too."""
        self.closed = True
        self.channel.close()


class TritonEngine:
    """The forward of one version in Triton."""

    def __init__(self, served: Served, signature: Signature) -> None:
        """Look whether Triton has the version, and let it load it where not.

        Raises:
            ScenariumError: SCN-6050 (Triton is away), SCN-6052 (it has no such model), SCN-6055 (the model has other tensors).
        """
        self.url = served.serve.triton_url
        self.model = served.serve.triton_model or served.name
        self.version = str(served.version)
        self.name = served.name
        self.signature = signature
        self._patience = served.serve.deadline_ms / 1000
        self._types = [(spec.name, DATATYPES[spec.dtype], np.dtype(spec.dtype), not spec.shape) for spec in signature.inputs]
        self._outputs = {spec.name: (np.dtype(spec.dtype), not spec.shape) for spec in signature.outputs}
        self._local = threading.local()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._regions: dict[str, bool] = {}
        """What Triton has mapped by our word, and whether it may give it back."""
        self.breaker = Breaker(self._mend)
        self._mend("open")

    def __call__(self, inputs: Batch) -> Batch:
        """Ask Triton.

        Raises:
            ScenariumError: SCN-6050 to SCN-6054.
        """
        try:
            self.breaker.check()
        except ScenariumError:
            self._count("refused")
            raise
        for last in (False, True):
            try:
                answer = self._ask(inputs)
            except grpc.RpcError as fault:
                if last or not self._again(fault):
                    self._failed(fault)
            else:
                self._count("ok")
                return self._read(answer)
        raise AssertionError("unreachable")

    def figures(self) -> dict[str, Any]:
        """What became of the calls since this was asked last, and the breaker's state."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return {"calls": dict(counts), "breaker": self.breaker.state}

    def _count(self, outcome: str) -> None:
        with self._lock:
            self._counts[outcome] += 1

    def close(self) -> None:
        """End this thread's connection, have Triton give back the memory of all threads, and look for it no more."""
        self.breaker.close()
        line: Line | None = getattr(self._local, "line", None)
        if line:
            line.close()
        self._regions = dict.fromkeys(self._regions, True)
        with self._looking() as stub:
            self._give_back(stub)

    # ── one call ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _line(self) -> Line:
        line: Line | None = getattr(self._local, "line", None)
        if line is None or line.closed:
            fresh = self._local.line = Line(self.url)
            if line:
                fresh.region, fresh.plain = line.region, line.plain
            line = fresh
        return line

    def _ask(self, inputs: Batch) -> Any:
        call, line = CALL.get(), self._line()
        remaining = call.remaining() if call else self._patience
        if remaining <= 0 or (call and call.cancelled):
            self._count("deadline")
            raise ScenariumError("SCN-6054", url=self.url)
        if any(self._regions.values()):
            self._give_back(line.stub)
        try:
            request = self._request(inputs, line)
            if call:
                call.watch(line.close)
            return line.infer(request, timeout=remaining)
        except ValueError as fault:  # it was closed before it began
            self._leave(line)
            raise Cancelled from fault
        except grpc.RpcError:
            self._leave(line)
            raise
        finally:
            if call:
                call.watch(None)

    def _request(self, inputs: Batch, line: Line) -> Any:
        request = pb.ModelInferRequest(model_name=self.model, model_version=self.version)
        arrays = []
        for name, datatype, dtype, flat in self._types:
            array = np.ascontiguousarray(inputs[name], dtype=dtype)
            if flat:
                array = array.reshape(-1, 1)
            request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            arrays.append(array)
        total = sum(array.nbytes for array in arrays)
        region = self._region(line, total) if total >= WORTH and not line.plain else None
        if region is None:
            request.raw_input_contents.extend(array.tobytes() for array in arrays)
            return request
        at = 0
        for tensor, array in zip(request.inputs, arrays, strict=True):
            np.frombuffer(region.memory, array.dtype, array.size, at)[:] = array.reshape(-1)
            tensor.parameters["shared_memory_region"].string_param = region.name
            tensor.parameters["shared_memory_byte_size"].int64_param = array.nbytes
            tensor.parameters["shared_memory_offset"].int64_param = at
            at += -(-array.nbytes // 64) * 64  # each begins at a multiple of 64 bytes
        return request

    def _region(self, line: Line, total: int) -> Region | None:
        """Memory for so many bytes, and 64 more for each tensor; None where Triton cannot see it."""
        needed = total + 64 * len(self._types)
        if line.region and line.region.size >= needed:
            return line.region
        try:
            region = Region(1 << (needed - 1).bit_length())
        except (OSError, AttributeError):
            line.plain = True
            return None
        self._leave(line)
        self._give_back(line.stub)
        try:
            asked = pb.SystemSharedMemoryRegisterRequest(name=region.name, key=f"/{region.name}", byte_size=region.size)
            line.stub.SystemSharedMemoryRegister(asked, timeout=LOOK_S)
        except grpc.RpcError:  # another host, a container with memory of its own, or gone
            line.plain = True
            return None
        finally:
            region.forget()
        line.region = region
        with self._lock:
            self._regions[region.name] = False
        return region

    def _leave(self, line: Line) -> None:
        """Write no more into the line's memory: a call that was given up may still wait there, and its neighbours in a batch must not suffer."""
        if line.region:
            with self._lock:
                self._regions[line.region.name] = True
            line.region = None

    def _give_back(self, stub: Any) -> None:
        """Have Triton unmap what nobody writes into any more. While a call of it runs there Triton refuses; then the next call asks again."""
        with self._lock:
            left = [name for name, free in self._regions.items() if free]
        for name in left:
            with contextlib.suppress(grpc.RpcError, ValueError):
                stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(name=name), timeout=LOOK_S)
                with self._lock:
                    self._regions.pop(name, None)

    def _read(self, answer: Any) -> Batch:
        found: Batch = {}
        for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
            if tensor.name in self._outputs:
                dtype, flat = self._outputs[tensor.name]
                array = np.frombuffer(bytearray(raw), dtype)  # a copy, for what lies in the message cannot be written
                found[tensor.name] = array if flat else array.reshape(tuple(tensor.shape))
        return found

    # ── faults ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _again(self, fault: grpc.RpcError) -> bool:
        """Whether a second try may do better: the connection was closed by the last call's cancel, or Triton was restarted and has no such memory."""
        call = CALL.get()
        if fault.code() == grpc.StatusCode.CANCELLED:
            return not (call and call.cancelled)
        return "shared memory" in (fault.details() or "") and not self._line().plain

    def _failed(self, fault: grpc.RpcError) -> NoReturn:
        """What a failed call means, as an error; the breaker is told."""
        code, reason = fault.code(), _reason(fault)
        about: dict[str, Any] = {"url": self.url, "model": self.model, "version": self.version, "name": self.name, "reason": reason}
        if code == grpc.StatusCode.CANCELLED:
            self._count("cancelled")
            raise ScenariumError("SCN-6054", url=self.url)
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            self._count("deadline")
            self._suspect()
            raise ScenariumError("SCN-6054", url=self.url)
        self._count("failed")
        if UNHEALTHY in reason:
            error, state = ScenariumError("SCN-6051", **about), "reloading"
        elif any(words in reason for words in UNKNOWN):
            error, state = ScenariumError("SCN-6052", **about), "open"
        elif code in AWAY:
            error, state = ScenariumError("SCN-6050", **about), "open"
        else:
            raise ScenariumError("SCN-6053", **about) from None
        self._local.line.close()
        self.breaker.trip(state, error)  # type: ignore[arg-type]
        raise error from None

    def _suspect(self) -> None:
        """A call that is late may be Triton's queue, or its end: a host that is gone sends nothing."""
        try:
            with self._looking() as stub:
                stub.ServerLive(pb.ServerLiveRequest(), timeout=LOOK_S)
        except grpc.RpcError as fault:
            self.breaker.trip("open", self._away(fault))

    def _away(self, fault: grpc.RpcError) -> ScenariumError:
        return ScenariumError("SCN-6050", url=self.url, reason=_reason(fault))

    @contextlib.contextmanager
    def _looking(self) -> Iterator[Any]:
        with grpc.insecure_channel(self.url, options=OPTIONS) as channel:
            yield GRPCInferenceServiceStub(channel)

    def _mend(self, state: State) -> None:
        """Return when the version can be asked for, having done what helps.

        Raises:
            ScenariumError: SCN-6050, SCN-6052, SCN-6055.
        """
        with self._looking() as stub:
            try:
                stub.ServerLive(pb.ServerLiveRequest(), timeout=LOOK_S)
                if state == "reloading":
                    # A load of files that did not change does nothing, so it goes first.
                    stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=self.model), timeout=LOAD_S)
                    _until(lambda: not self._loaded(stub), 30.0)
                if not self._loaded(stub):
                    self._load(stub)
                about = stub.ModelMetadata(pb.ModelMetadataRequest(name=self.model, version=self.version), timeout=LOOK_S)
            except grpc.RpcError as fault:
                if fault.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED) and "model" not in (fault.details() or ""):
                    raise self._away(fault) from None
                reason = _reason(fault)
                raise ScenariumError("SCN-6052", url=self.url, model=self.model, version=self.version, name=self.name, reason=reason) from None
        for kind, ours, theirs in (("input", self.signature.inputs, about.inputs), ("output", self.signature.outputs, about.outputs)):
            wanted, given = {spec.name: DATATYPES[spec.dtype] for spec in ours}, {each.name: each.datatype for each in theirs}
            if any(given.get(name) != datatype for name, datatype in wanted.items()) or (kind == "input" and len(given) != len(wanted)):
                raise ScenariumError("SCN-6055", url=self.url, model=self.model, reason=f"{kind} {given}, {wanted}")

    def _load(self, stub: Any) -> None:
        try:
            stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=self.model), timeout=LOAD_S)
        except grpc.RpcError as fault:
            if "polling" not in (fault.details() or ""):
                raise
            _until(lambda: self._loaded(stub), POLL_S)  # it looks for itself what there is, and takes no orders

    def _loaded(self, stub: Any) -> bool:
        answer = stub.ModelReady(pb.ModelReadyRequest(name=self.model, version=self.version), timeout=LOOK_S)
        return bool(answer.ready)


class Cancelled(grpc.RpcError):  # type: ignore[misc]
    """A call that was cancelled before it began."""

    def code(self) -> grpc.StatusCode:
        """As of a call that began."""
        return grpc.StatusCode.CANCELLED

    def details(self) -> str:
        """Nothing more is known."""
        return "cancelled"


def _reason(fault: grpc.RpcError) -> str:
    """The first line of what is said of it, which may be nothing."""
    lines: list[str] = (fault.details() or "").strip().splitlines()
    return lines[0] if lines else str(fault.code().name)


def _until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)


def open(version: Path, signature: Signature, device: str, build: Callable[[], Any]) -> TritonEngine:
    """Ask for the version that is being loaded.

    Raises:
        ScenariumError: SCN-6003 (it is not in the store, or is no tensor function); as ``TritonEngine``.
    """
    served = SERVED.get()
    if served is None or not served.version or not signature.inputs:
        raise ScenariumError("SCN-6003", engine="triton", file=version)
    return TritonEngine(served, signature)
