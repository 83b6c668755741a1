"""The v2 protocol over gRPC, in the gateway's process and on its event loop: ``[gateway] grpc_port``, with the extra ``triton``.

The service stands on tritonclient's own classes (see ``messages``), which are imported only where a port is set. Who may call, limits, request
ids, deadlines and priorities come from the metadata, by the names that the headers of HTTP have; gRPC's own deadline counts too.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import socket
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

from scenarium.core.errors import ScenariumError
from scenarium.core.tensors import RESPONSE, write_elements
from scenarium.gateway import logs
from scenarium.gateway.admission import ANONYMOUS
from scenarium.gateway.audit import Entry
from scenarium.gateway.kserve import messages, models, repository
from scenarium.gateway.kserve.inference import Inference, policy
from scenarium.gateway.kserve.refusals import Refusal, of_error, of_problem
from scenarium.gateway.predict import Call, Disconnected, count_answer, failed
from scenarium.gateway.stream import Parts

if TYPE_CHECKING:
    from scenarium.core.config import GatewayConfig
    from scenarium.gateway.admission import Caller
    from scenarium.gateway.app import Gateway

Kind = Literal["open", "read", "control", "infer"]
AT_ONCE = 64
"""Requests of one stream that are open at once; the next is read when one has ended."""
FRAMING = 1 << 20
"""What a message may have beside the largest body of a scenario: names, shapes, typed fields."""
MODULES = ("grpc", "tritonclient.grpc.service_pb2_grpc")


def check(config: GatewayConfig) -> None:
    """See that the configured port can be served, before anything listens.

    Raises:
        ScenariumError: SCN-4206 (a package is missing), SCN-4207 (the port is taken).
    """
    if config.grpc_port is None:
        return
    try:
        for module in MODULES:
            importlib.import_module(module)
    except ModuleNotFoundError as fault:
        raise ScenariumError("SCN-4206", module=fault.name) from fault
    try:
        socket.create_server((config.host, config.grpc_port), family=socket.AF_INET6 if ":" in config.host else socket.AF_INET).close()
    except OSError as fault:
        raise ScenariumError("SCN-4207", host=config.host, port=config.grpc_port, reason=fault.strerror or str(fault)) from fault


@contextlib.asynccontextmanager
async def serving(gateway: Gateway, inference: Inference) -> AsyncIterator[None]:
    """Serve the port while the context is open; at its end what is open may finish within ``drain_s``."""
    config = gateway.config
    if config.grpc_port is None:
        yield
        return
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # nothing here forks: zygotes are other programs
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    largest = max((service.config.max_body_bytes for service in gateway.services.values()), default=0) + FRAMING
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", largest), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=config.max_connections)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Rpc(gateway, inference, service_pb2), server)
    host = f"[{config.host}]" if ":" in config.host else config.host
    port = server.add_insecure_port(f"{host}:{config.grpc_port}")
    await server.start()
    logs.event("info", "listening_grpc", address=f"{host}:{port}")
    try:
        yield
    finally:
        await server.stop(gateway.drain_s)


def _rpc(kind: Kind) -> Callable[[Callable[[Any, Any, Call], Awaitable[Any]]], Any]:
    """A method of the service: lets the caller in, and tells a refusal by its status. ``method(self, request, call)`` gives the response."""

    def decorate(method: Callable[[Any, Any, Call], Awaitable[Any]]) -> Any:
        @wraps(method)
        async def guarded(self: Rpc, request: Any, context: Any) -> Any:
            call = _call(context)
            try:
                call.caller = self.let_in(kind, call)
                return await method(self, request, call)
            except Exception as fault:
                refusal = _refusal(fault, call)
            import grpc

            await context.abort(getattr(grpc.StatusCode, refusal.grpc), refusal.text)

        return guarded

    return decorate


def _call(context: Any) -> Call:
    """What the metadata say; gRPC's deadline among it."""
    pairs = [(key.encode(), value.encode() if isinstance(value, str) else value) for key, value in context.invocation_metadata() or ()]
    call = Call([(key, value) for key, value in pairs if key != b"content-length"])
    remaining = context.time_remaining()
    if remaining is not None:
        given = call.deadline_ms
        left = min(max(1.0, remaining * 1000), 9e8)
        if not given:
            call.deadline_ms = b"%f" % left
        else:
            with contextlib.suppress(ValueError):  # told when it is read
                call.deadline_ms = b"%f" % min(left, float(given)) if float(given) > 0 else given
    call.host = "localhost"  # no web page speaks gRPC, so no name can be bent
    return call


def _refusal(fault: Exception, call: Call) -> Refusal:
    """Why there is no answer; a fault of our own is written to the log."""
    if isinstance(fault, Refusal):
        return fault
    if isinstance(fault, ScenariumError):
        return of_error(fault, call.language)
    if isinstance(fault, Disconnected):
        return Refusal(499, "The client left.")
    logs.event("error", "gateway_fault", request_id=call.rid_header.decode("latin-1"), traceback="".join(traceback.format_exception(fault)))
    return of_error(ScenariumError("SCN-4019", reason=f"{type(fault).__name__}: {fault}"), call.language)


def bounded(model: models.Model, body: bytes, entry: Entry | None) -> None:
    """See that a body is not too large; the audit log has its hash.

    Raises:
        ScenariumError: SCN-4012.
    """
    if entry:
        entry.body.add(body, False)
    limit = model.service.config.max_body_bytes
    if len(body) > limit:
        raise ScenariumError("SCN-4012", limit=limit, name=model.service.name)


class Rpc:
    """The methods of ``inference.GRPCInferenceService``; ``pb`` is its ``service_pb2``."""

    def __init__(self, gateway: Gateway, inference: Inference, pb: Any) -> None:
        self.gateway = gateway
        self.inference = inference
        self.pb = pb

    def let_in(self, kind: Kind, call: Call) -> Caller:
        """The caller, where no scenario decides (``infer``: ``answer`` does it).

        Raises:
            Rejected.
        """
        admission = self.gateway.admission
        if kind == "control":
            return admission.control(call, b"")
        return admission.check(call, "GET", "/v2") if kind == "read" else ANONYMOUS

    def fill(self, message: Any, value: dict[str, Any]) -> Any:
        """A message of a JSON object with its members."""
        from google.protobuf.json_format import ParseDict

        return ParseDict(value, message)

    # ── inference ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @_rpc("infer")
    async def ModelInfer(self, request: Any, call: Call) -> Any:
        return await self.answer(request, call)

    async def answer(self, request: Any, call: Call) -> Any:
        """The one response to a request."""
        async with self.admitted(request, call) as (model, entry):
            body, length = messages.to_body(request)
            bounded(model, body, entry)
            reply = await self.inference.run(model, call, body, length)
            if entry:
                entry.answer.add(reply.body, False)
                entry.headers = [(b"x-request-id", call.rid_header), (b"x-scenarium-version", b"%d" % reply.version)]
            return messages.to_response(self.pb, reply)

    @contextlib.asynccontextmanager
    async def admitted(self, request: Any, call: Call) -> AsyncIterator[tuple[models.Model, Entry | None]]:
        """Let a request to a model in, and write it to the audit log when it has ended.

        Raises:
            ScenariumError: SCN-4202 (no such model), SCN-4114 (the audit log cannot be written), Rejected, Limited.
        """
        name, audit = models.scenario_of(self.gateway, request.model_name), self.gateway.audit
        call.caller = await self.gateway.admission.admit(call, name)
        if audit:
            audit.check()
        entry = Entry("GRPC", f"{request.model_name}/infer", name, call.caller) if audit else None
        if entry:
            entry.headers = [(b"x-request-id", call.rid_header)]
        try:
            yield models.find(self.gateway, request.model_name, request.model_version), entry
            if entry:
                entry.status = 200
        except (ScenariumError, Refusal) as fault:
            if entry:
                entry.status = fault.status
            raise
        finally:
            if audit and entry:
                audit.put(entry)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> None:
        # Responses come in the order of their requests; those of a model that answers in parts as they are made.
        writing, room = asyncio.Lock(), asyncio.Semaphore(AT_ONCE)
        open_: set[asyncio.Task[None]] = set()
        before: asyncio.Task[None] | None = None

        async def write(response: Any) -> None:
            async with writing:
                await context.write(response)

        def ended(task: asyncio.Task[None]) -> None:
            open_.discard(task)
            room.release()

        try:
            async for request in requests:
                await room.acquire()
                parts = request.model_name not in self.gateway.services and request.model_name.endswith(".stream")
                work = self._parts(request, _call(context), write) if parts else self._whole(request, _call(context), write, before)
                task = asyncio.create_task(work)
                before = before if parts else task
                open_.add(task)
                task.add_done_callback(ended)
            await asyncio.gather(*open_)
        finally:
            for task in list(open_):
                task.cancel()

    async def _whole(self, request: Any, call: Call, write: Any, before: asyncio.Task[None] | None) -> None:
        """Answer one request of a stream at once, after the one before it."""
        try:
            response = await self.answer(request, call)
            response.parameters["triton_final_response"].bool_param = True
            found = self.pb.ModelStreamInferResponse(infer_response=response)
        except Exception as fault:
            found = self._error(request, call, fault)
        if before:
            await asyncio.wait([before])
        await write(found)

    def _error(self, request: Any, call: Call, fault: Exception) -> Any:
        about = self.pb.ModelInferResponse(model_name=request.model_name, id=request.id)
        return self.pb.ModelStreamInferResponse(error_message=_refusal(fault, call).text, infer_response=about)

    async def _parts(self, request: Any, call: Call, write: Any) -> None:
        """Answer one request of a stream part by part; last, where it is asked for, an empty response that says so."""
        try:
            async with self.admitted(request, call) as (model, entry):
                body = messages.only_request(request)
                bounded(model, body, entry)
                async with contextlib.aclosing(self._stream(model, call, body, messages.parameters(request.parameters))) as parts:
                    async for part in parts:
                        response = self._response(model, request)
                        response.outputs.add(name=RESPONSE.name, datatype=RESPONSE.datatype, shape=[1])
                        response.raw_output_contents.append(write_elements([part]))
                        await write(self.pb.ModelStreamInferResponse(infer_response=response))
            if request.parameters["triton_enable_empty_final_response"].bool_param:
                last = self._response(model, request)
                last.parameters["triton_final_response"].bool_param = True
                await write(self.pb.ModelStreamInferResponse(infer_response=last))
        except Exception as fault:
            await write(self._error(request, call, fault))

    def _response(self, model: models.Model, request: Any) -> Any:
        response = self.pb.ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
        response.parameters["triton_final_response"].bool_param = False
        return response

    async def _stream(self, model: models.Model, call: Call, body: bytes, parameters: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """The parts of one answer."""
        service = model.service
        if service.fault:
            raise service.fault
        limit_ms = policy(parameters, call, call.deadline(service.config.deadline_ms))
        parts = Parts(service)
        request = parts.request = call.request(body, time.monotonic(), limit_ms, parts.end)
        request.key, request.content_type, request.stream = call.key, "", parts.put
        service.submit(request)
        try:
            while found := await parts.take():
                for part in found:
                    yield part
        finally:
            service.cancel(request)
        outcome = parts.outcome
        assert outcome is not None
        figures = self.inference.statistics.of(model.name, str(outcome.version or model.version))
        seconds = time.monotonic() - request.entered
        if outcome.failure or outcome.status >= 400:
            figures.failed(seconds)
            if outcome.failure:
                raise failed(service, request, outcome, limit_ms)
            count_answer(service, request, outcome)
            raise of_problem(json.loads(outcome.body), outcome.version)
        count_answer(service, request, outcome)
        figures.answered(seconds, request.sent - request.entered, outcome.times, 1, 1)

    # ── everything else ───────────────────────────────────────────────────────────────────────────────────────────────

    @_rpc("open")
    async def ServerLive(self, request: Any, call: Call) -> Any:
        return self.pb.ServerLiveResponse(live=True)

    @_rpc("open")
    async def ServerReady(self, request: Any, call: Call) -> Any:
        return self.pb.ServerReadyResponse(ready=models.server_ready(self.gateway))

    @_rpc("read")
    async def ModelReady(self, request: Any, call: Call) -> Any:
        try:
            ready = models.is_ready(self.gateway, models.find(self.gateway, request.name, request.version))
        except ScenariumError:
            ready = False
        return self.pb.ModelReadyResponse(ready=ready)

    @_rpc("read")
    async def ServerMetadata(self, request: Any, call: Call) -> Any:
        return self.fill(self.pb.ServerMetadataResponse(), models.server())

    @_rpc("read")
    async def ModelMetadata(self, request: Any, call: Call) -> Any:
        return self.fill(self.pb.ModelMetadataResponse(), models.metadata(models.find(self.gateway, request.name, request.version)))

    @_rpc("read")
    async def ModelConfig(self, request: Any, call: Call) -> Any:
        return self.fill(self.pb.ModelConfigResponse(), {"config": models.config(models.find(self.gateway, request.name, request.version))})

    @_rpc("read")
    async def ModelStatistics(self, request: Any, call: Call) -> Any:
        found = [models.find(self.gateway, request.name, request.version)] if request.name else models.every(self.gateway)
        figures = [self.inference.statistics.of(model.name, model.version).shown(model.name, model.version) for model in found]
        return self.fill(self.pb.ModelStatisticsResponse(), {"model_stats": figures})

    @_rpc("read")
    async def RepositoryIndex(self, request: Any, call: Call) -> Any:
        return self.fill(self.pb.RepositoryIndexResponse(), {"models": repository.index(self.gateway, request.ready)})

    @_rpc("control")
    async def RepositoryModelLoad(self, request: Any, call: Call) -> Any:
        await repository.load(self.gateway, request.model_name, dict(request.parameters))
        return self.pb.RepositoryModelLoadResponse()

    @_rpc("control")
    async def RepositoryModelUnload(self, request: Any, call: Call) -> Any:
        await repository.unload(self.gateway, request.model_name)
        return self.pb.RepositoryModelUnloadResponse()

    @_rpc("read")
    async def SystemSharedMemoryStatus(self, request: Any, call: Call) -> Any:
        regions = {each["name"]: each for each in self.inference.regions.status(request.name)}
        return self.fill(self.pb.SystemSharedMemoryStatusResponse(), {"regions": regions})

    @_rpc("control")
    async def SystemSharedMemoryRegister(self, request: Any, call: Call) -> Any:
        self.inference.regions.register(request.name, request.key, request.offset, request.byte_size)
        return self.pb.SystemSharedMemoryRegisterResponse()

    @_rpc("control")
    async def SystemSharedMemoryUnregister(self, request: Any, call: Call) -> Any:
        self.inference.regions.unregister(request.name)
        return self.pb.SystemSharedMemoryUnregisterResponse()

    @_rpc("read")
    async def CudaSharedMemoryStatus(self, request: Any, call: Call) -> Any:
        return self.pb.CudaSharedMemoryStatusResponse()

    @_rpc("read")
    async def CudaSharedMemoryUnregister(self, request: Any, call: Call) -> Any:
        return self.pb.CudaSharedMemoryUnregisterResponse()

    @_rpc("control")
    async def CudaSharedMemoryRegister(self, request: Any, call: Call) -> Any:
        raise ScenariumError("SCN-4204", what_en="CUDA shared memory", what_zh="CUDA 共享内存")

    @_rpc("control")
    async def TraceSetting(self, request: Any, call: Call) -> Any:
        raise ScenariumError("SCN-4204", what_en="trace settings", what_zh="跟踪设置")

    @_rpc("control")
    async def LogSettings(self, request: Any, call: Call) -> Any:
        raise ScenariumError("SCN-4204", what_en="log settings", what_zh="日志设置")
