"""Inferences over gRPC: one call, or a stream of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from scenarium.core.errors import ScenariumError
from scenarium.core.tensors import RESPONSE, write_elements
from scenarium.gateway import logs
from scenarium.gateway.audit import Entry
from scenarium.gateway.kserve import messages, models
from scenarium.gateway.kserve.inference import Inference, policy
from scenarium.gateway.kserve.refusals import Refusal, of_error, of_problem
from scenarium.gateway.predict import Call, Disconnected, count_answer, failed, routing_key
from scenarium.gateway.stream import Parts

if TYPE_CHECKING:
    from scenarium.gateway.app import Gateway

AT_ONCE = 64
"""Requests of one stream that are open at once; the next is read when one has ended."""


def read_call(context: Any) -> Call:
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


def refusal_of(fault: Exception, call: Call) -> Refusal:
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


class Calls:
    """What the inferences of one gateway need; ``pb`` is tritonclient's ``service_pb2``."""

    def __init__(self, gateway: Gateway, inference: Inference, pb: Any) -> None:
        self.gateway = gateway
        self.inference = inference
        self.pb = pb

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
        name = models.scenario_of(self.gateway, request.model_name)
        call.caller = await self.gateway.admission.admit(call, name)
        with self.audited(f"{request.model_name}/infer", name, call) as entry:
            yield models.find(self.gateway, request.model_name, request.model_version), entry

    @contextlib.contextmanager
    def audited(self, what: str, scenario: str | None, call: Call) -> Iterator[Entry | None]:
        """Write a call that was let in to the audit log, where there is one, when it has ended.

        Raises:
            ScenariumError: SCN-4114 (the audit log cannot be written).
        """
        audit = self.gateway.audit
        if audit is None:
            yield None
            return
        audit.check()
        entry = Entry("GRPC", what, scenario, call.caller)
        entry.headers = [(b"x-request-id", call.rid_header)]
        try:
            yield entry
            entry.status = 200
        except (ScenariumError, Refusal) as fault:
            entry.status = fault.status
            raise
        finally:
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
                work = self._parts(request, read_call(context), write) if parts else self._whole(request, read_call(context), write, before)
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
        return self.pb.ModelStreamInferResponse(error_message=refusal_of(fault, call).text, infer_response=about)

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
        request.key = routing_key(service, call, body)
        request.content_type, request.stream = "", parts.put
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
