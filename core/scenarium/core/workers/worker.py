"""One worker: answers batches with a loaded version until it is told to stop. How it comes to be is in ``process``.

Some thread always listens, so that a cancel, a ping or the end of the gateway is noticed during a long forward.
``concurrency = "batch"`` runs one ``predict_batch`` at a time in the main thread; ``n`` runs up to n items in threads.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import to_json

from scenarium.core import devices
from scenarium.core.calls import CALL, Call
from scenarium.core.errors import ScenariumError
from scenarium.core.runtime import Runtime, Times
from scenarium.core.spans import PARENT
from scenarium.core.traces import print_fault
from scenarium.core.workers import frames, group
from scenarium.core.workers.alarm import make_alarm
from scenarium.core.workers.frames import Answer, Item
from scenarium.core.workers.spans import Spans

if TYPE_CHECKING:
    from scenarium.core.workers.infer import Inference

TAKEOVER_S = 0.02
"""A batch that takes longer is long."""
FIGURES_S = 1.0
"""How often the gateway is told of a model's calls to another server, at most."""


class Open(NamedTuple):
    """An item that came in, and when (``time.monotonic``)."""

    item: Item
    since: float


class Worker:
    """Answers the frames of one socket with one loaded version."""

    def __init__(self, sock: socket.socket, reader: frames.Reader, runtime: Runtime, spans: Spans | None = None, alone: bool = True) -> None:
        self.sock = sock
        self.alone = alone
        """Whether the process is its own; else it is a group's, which outlives it."""
        self.spans = spans
        self.reader = reader
        self.runtime = runtime
        self._inference: Inference | None = None
        self.log_payloads = runtime.scenario.config.serve.log_payloads
        self.cancelled: set[int] = set()
        self.open: set[int] = set()
        self.draining = False
        self._calls: list[Call] = []
        self._figures = getattr(runtime.model, "figures", None)
        self._told = 0.0
        self._write = threading.Lock()
        self._turn = threading.Lock()
        """Guards ``_busy`` and ``_listening``."""
        self._busy = self._listening = self._over = False
        self._inbox: queue.SimpleQueue[list[Open]] = queue.SimpleQueue()
        self._alarm = make_alarm(TAKEOVER_S)
        concurrency = runtime.traits.concurrency
        self._pool = ThreadPoolExecutor(concurrency, "item", group.print_as, (group.mine(),)) if isinstance(concurrency, int) else None

    def run(self) -> None:
        """Serve until drained. The end of the gateway ends the process at once."""
        if self._pool:
            while not self.draining:
                for entry in self._receive():
                    self._pool.submit(self._single, entry)
            self._pool.shutdown(wait=True)
            return
        listener = threading.Thread(target=self._listen, name="listener", daemon=True)
        listener.start()
        while not self.draining:
            if batch := self._next():
                self._busy = True
                self._alarm.start()
                self._batch(batch)
                self._alarm.stop()
                with self._turn:
                    self._busy = False
        self._over = True
        self._alarm.start()
        listener.join()

    def send(self, data: bytes) -> None:
        """Write whole frames."""
        with self._write:
            self.sock.sendall(data)

    def _next(self) -> list[Open]:
        """The next batch: read by this thread, or by the listener where it has taken over."""
        if not self._listening:
            return self._receive()
        batch = self._inbox.get()
        self._listening = False
        return batch

    def _listen(self) -> None:
        """Listen while a batch takes long.

        A short batch is read and answered by one thread, since a hand-over between two costs more than the rest of the frame. So
        that a cancel, a ping or the gateway's end is noticed during a long one, this thread reads from ``TAKEOVER_S`` on, until it
        has the next batch, which it hands back.
        """
        while True:
            self._alarm.wait()
            if self._over:
                return self._alarm.close()
            with self._turn:
                if not self._busy or self._listening:
                    continue
                self._listening = True
            batch: list[Open] = []
            while not batch and not self.draining:
                batch = self._receive()
            self._inbox.put(batch)

    def _receive(self) -> list[Open]:
        """Read one frame and do what it says; a batch is returned."""
        try:
            received = self.reader()
            if received:
                kind, body = received
                if kind == frames.BATCH:
                    now = time.monotonic()
                    batch = [Open(item, now) for item in frames.read_batch(body)]
                    self.open.update(entry.item.rid for entry in batch)
                    return batch
                if kind == frames.CANCEL:
                    (rid,) = frames.RID.unpack(body)
                    if rid in self.open:
                        self.cancelled.add(rid)
                        for call in tuple(self._calls):
                            call.drop(rid)
                elif kind == frames.PING:
                    self._tell(0.0)
                    self.send(frames.rid_frame(frames.PONG, frames.RID.unpack(body)[0], to_json(devices.memory_of(self.runtime.model))))
                elif kind == frames.DRAIN:
                    self.draining = True
                return []
        except (OSError, ValueError, struct.error):
            pass
        # The gateway is gone, or out of step: no answer can reach anyone, whatever another thread is computing.
        if self.alone:
            end()
        self.draining = True
        return []

    def _batch(self, batch: list[Open]) -> None:
        """Answer the items of one batch: those that predict together, streams one after another."""
        predicts = [entry for entry in batch if entry.item.mode == frames.PREDICT]
        if predicts:
            self._predict(predicts)
        if len(predicts) < len(batch) and (infers := [entry for entry in batch if entry.item.mode == frames.INFER]):
            self._infer(infers)
        for entry in batch:
            if entry.item.mode == frames.STREAM:
                self._stream(entry)

    def _single(self, entry: Open) -> None:
        try:
            if entry.item.mode == frames.STREAM:
                self._stream(entry)
            elif entry.item.mode == frames.INFER:
                self._infer([entry])
            else:
                self._predict([entry])
        except OSError:
            if self.alone:
                os._exit(1)

    def _live(self, batch: list[Open], now: float) -> list[Open]:
        """Those that someone still waits for. The gateway has ended the others already, so they get no answer."""
        live = []
        for entry in batch:
            if entry.item.rid in self.cancelled or (now - entry.since) * 1000 > entry.item.remaining_ms:
                self._close(entry.item.rid)
                self.send(self._answer(entry, 504, Times(), now, b""))
            else:
                live.append(entry)
        return live

    def _predict(self, batch: list[Open]) -> None:
        began = time.monotonic()
        batch = self._live(batch, began)
        spans = self.spans and self.spans.begin("predict", [entry.item.trace for entry in batch], len(batch))
        times = Times()
        requests: list[BaseModel] = []
        asked: list[Open] = []
        out: list[bytes] = []
        for entry in batch:
            try:
                requests.append(self.runtime.decode(entry.item.body, entry.item.content_type))
                asked.append(entry)
            except Exception as fault:
                out.append(self._problem(entry, fault, times, began))
        times.preprocess = int((time.monotonic() - began) * 1e9)
        with self._calling(asked):
            answers = self.runtime.predict(requests, times)
        for entry, request, answer in zip(asked, requests, answers, strict=True):
            out.append(self._finish(entry, request, answer, times, began))
        for entry in batch:
            self._close(entry.item.rid)
        self.send(b"".join(out))
        if spans:
            spans.end(times)

    def _infer(self, batch: list[Open]) -> None:
        began = time.monotonic()
        batch = self._live(batch, began)
        spans = self.spans and self.spans.begin("infer", [entry.item.trace for entry in batch], len(batch))
        if self._inference is None:
            from scenarium.core.workers.infer import Inference  # NumPy: not in a worker that is asked for no tensors

            self._inference = Inference(self.runtime)

        def log(place: int, request: BaseModel, answer: BaseModel | Exception) -> None:
            if self.log_payloads:
                outcome = {"error": self._error(answer).problem()} if isinstance(answer, Exception) else {"answer": answer.model_dump(mode="json")}
                self._log(batch[place], request, outcome)

        times = Times()
        with self._calling(batch):
            answers = self._inference.answers([entry.item for entry in batch], times, log)
        times.postprocess = max(0, int((time.monotonic() - began) * 1e9) - times.preprocess - times.forward)
        out = []
        for entry, answer in zip(batch, answers, strict=True):
            out.append(self._problem(entry, answer, times, began) if isinstance(answer, Exception) else self._answer(entry, 200, times, began, answer))
            self._close(entry.item.rid)
        self.send(b"".join(out))
        if spans:
            spans.end(times)

    def _finish(self, entry: Open, request: BaseModel, answer: BaseModel | Exception, times: Times, began: float) -> bytes:
        if not isinstance(answer, BaseException):
            try:
                body = answer.model_dump_json().encode()
            except Exception as fault:
                answer = fault
            else:
                if self.log_payloads:
                    self._log(entry, request, {"answer": json.loads(body)})
                return self._answer(entry, 200, times, began, body)
        if self.log_payloads:
            self._log(entry, request, {"error": self._error(answer).problem()})
        return self._problem(entry, answer, times, began)

    def _stream(self, entry: Open) -> None:
        item, began, times = entry.item, time.monotonic(), Times()
        if not self._live([entry], began):
            return
        spans = self.spans and self.spans.begin("stream", [item.trace], 1)
        status, body = 200, b""
        try:
            parts = self.runtime.stream(self.runtime.decode(item.body, item.content_type))
            try:
                for part in parts:
                    if item.rid in self.cancelled or (time.monotonic() - entry.since) * 1000 > item.remaining_ms:
                        status = 504
                        break
                    self.send(frames.rid_frame(frames.CHUNK, item.rid, to_json(part)))
            finally:
                close = getattr(parts, "close", None)
                if close:
                    close()
        except OSError:
            raise
        except Exception as fault:
            error = self._error(fault)
            status, body = error.status, to_json(error.problem(item.language))
        times.forward = int((time.monotonic() - began) * 1e9)
        self._close(item.rid)
        self.send(self._answer(entry, status, times, began, body, frames.END))
        if spans:
            spans.end(times)

    @contextmanager
    def _calling(self, batch: list[Open]) -> Iterator[None]:
        """Let the model know until when anyone waits for this batch, where it asks another server; and the gateway what became of its calls."""
        if self._figures is None or not batch:
            yield
            return
        call = Call((entry.item.rid for entry in batch), max(entry.since + entry.item.remaining_ms / 1000 for entry in batch))
        self._calls.append(call)
        for entry in batch:
            if entry.item.rid in self.cancelled:  # while the call was made
                call.drop(entry.item.rid)
        token = CALL.set(call)
        try:
            yield
        finally:
            CALL.reset(token)
            self._calls.remove(call)
            self._tell(FIGURES_S)

    def _tell(self, seconds: float) -> None:
        """Send the model's figures, unless that was done within so many seconds."""
        if self._figures is not None and (now := time.monotonic()) - self._told >= seconds:
            self._told = now
            self.send(frames.json_frame(frames.FIGURES, self._figures()))

    def _close(self, rid: int) -> None:
        self.open.discard(rid)
        self.cancelled.discard(rid)

    def _error(self, fault: BaseException) -> ScenariumError:
        """A fault as an error with a code; what the plugin did not mean is logged with its traceback. Ends the process where the device is lost."""
        devices.leave_if_lost(fault)
        if not isinstance(fault, ScenariumError):
            wrapped = ScenariumError("SCN-4003", name=self.runtime.scenario.name, reason=f"{type(fault).__name__}: {fault}")
            wrapped.__cause__ = fault
            fault = wrapped
        if fault.__cause__ is not None and fault.status >= 500:
            print_fault(fault.__cause__)
        return fault

    def _problem(self, entry: Open, fault: BaseException, times: Times, began: float) -> bytes:
        error = self._error(fault)
        return self._answer(entry, error.status, times, began, to_json(error.problem(entry.item.language)))

    def _answer(self, entry: Open, status: int, times: Times, began: float, body: bytes, kind: int = frames.ITEM) -> bytes:
        waited = int((began - entry.since) * 1e6)
        answer = Answer(entry.item.rid, status, waited, times.preprocess // 1000, times.forward // 1000, times.postprocess // 1000, body)
        return frames.answer_frame(answer, kind)

    def _log(self, entry: Open, request: BaseModel, outcome: dict[str, Any]) -> None:
        name = self.runtime.scenario.name
        record = self.runtime.scenario.hook.log_entry(scenario=name, entry={"request": request.model_dump(mode="json"), **outcome})
        self.send(frames.rid_frame(frames.LOG, entry.item.rid, to_json({**record, "traceparent": entry.item.trace[:PARENT]})))


def end() -> None:
    """End this process at once, and what it has started, which nobody else may be there to end."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
