"""The v2 protocol over gRPC, in the gateway's process and on its event loop: ``[gateway] grpc_port``, with the extra ``triton``.

The service stands on tritonclient's own classes (see ``messages``), which are imported only where a port is set. Who may call, limits, request
ids, deadlines and priorities come from the metadata, by the names that the headers of HTTP have; gRPC's own deadline counts too.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

from scenarium.core.errors import ScenariumError
from scenarium.gateway import logs
from scenarium.gateway.admission import ANONYMOUS
from scenarium.gateway.kserve import models, repository
from scenarium.gateway.kserve.calls import Calls, read_call, refusal_of
from scenarium.gateway.predict import Call

if TYPE_CHECKING:
    from scenarium.core.config import GatewayConfig
    from scenarium.gateway.admission import Caller
    from scenarium.gateway.app import Gateway
    from scenarium.gateway.kserve.inference import Inference

Kind = Literal["open", "read", "control", "infer"]
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
            call = read_call(context)
            try:
                call.caller = self.let_in(kind, call)
                if kind != "control":
                    return await method(self, request, call)
                with self.audited(method.__name__, None, call):
                    return await method(self, request, call)
            except Exception as fault:
                refusal = refusal_of(fault, call)
            import grpc

            await context.abort(getattr(grpc.StatusCode, refusal.grpc), refusal.text)

        return guarded

    return decorate


class Rpc(Calls):
    """The methods of ``inference.GRPCInferenceService``, of which ``Calls`` has the streaming one."""

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

    @_rpc("infer")
    async def ModelInfer(self, request: Any, call: Call) -> Any:
        return await self.answer(request, call)

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
