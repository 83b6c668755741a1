"""What the fuzzer feeds: each target takes bytes as a stranger, or a broken worker, would send them, and fails where they do harm.

Harm is any exception but a ``ScenariumError`` that is the client's fault (4xx), an answer that cannot be written, or more memory kept
than the bytes are worth. Hangs and memory in all are bounded by the fuzzer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from scenarium.core import bodies, images
from scenarium.core.errors import ScenariumError
from scenarium.core.schemas import Request
from scenarium.core.tensors import Declared
from scenarium.core.workers import frames, tensor_codec
from scenarium.gateway import job_routes, links, logs, problems
from scenarium.gateway.elements import Elements
from scenarium.gateway.keys import KeyFile, Keyring
from scenarium.gateway.metrics import Calls
from scenarium.gateway.predict import Call, body_key

Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}


def target(function: Target) -> Target:
    """File a target by its name."""
    TARGETS[function.__name__] = function
    return function


@contextlib.contextmanager
def only_the_clients_fault() -> Iterator[None]:
    """Let errors pass that a client is told; each must be writable in both languages, and short."""
    try:
        yield
    except ScenariumError as error:
        _tell(error)


def _tell(error: ScenariumError) -> None:
    assert 400 <= error.status < 500, error
    for language in ("en", "zh"):
        assert len(problems.body(error, language)) < 300_000


class Series(Request):
    """Every kind of field that the plugins' requests have."""

    text: str = ""
    note: str | None = None
    count: int = 1
    part: float | None = None
    flag: bool = False
    values: list[float] = []
    more: dict[str, list[float]] = {}


class Picture(Request):
    """A request of bytes."""

    image: bytes
    top: int = 1


@target
def body(data: bytes) -> None:
    """First line: the content type; then a body."""
    kind, _, content = data.partition(b"\n")
    for cls in (Series, Picture):
        with only_the_clients_fault():
            found = bodies.decode(content, kind.decode("latin-1"), cls)
            again = json.loads(found.model_dump_json(), parse_constant=_no_number)
            assert isinstance(again, dict)
            str(found).encode()


def _no_number(constant: str) -> None:
    raise AssertionError(f"{constant} got in")


@target
def headers(data: bytes) -> None:
    """Header lines, an empty line, a body, as the server hands them on."""
    head, _, content = data.partition(b"\n\n")
    pairs = [(name.lower(), value) for name, _, value in (line.partition(b": ") for line in head.split(b"\n")) if name.lower() != b"content-length"]
    call = Call(pairs)
    with only_the_clients_fault():
        call.check()
        limit_ms = call.deadline(30_000.0)
        request = call.request(content, 1.0, limit_ms, lambda outcome: None)
        key = call.key or body_key(content, "/session/id")
        item = frames.Item(request.rid, content, request.content_type, int(limit_ms), frames.PREDICT, request.language, request.trace, key)
        (again,) = frames.read_batch(memoryview(frames.batch_frame([item]))[5:])
        assert again == item
    assert call.rid_header
    with only_the_clients_fault():
        job_routes._list_query(cast(Any, SimpleNamespace(scope={"query_string": head})))
    Keyring(cast(KeyFile, None)).find(call.credential.decode("latin-1"))


@target
def batch_frames(data: bytes) -> None:
    """The body of a batch frame, as a worker reads it."""
    with contextlib.suppress(ValueError, struct.error):
        items = frames.read_batch(memoryview(data))
        assert sum(len(item.body) for item in items) <= len(data)
        frames.read_batch(memoryview(frames.batch_frame(items))[5:])


class _Recorder:
    """What a link reports to."""

    name = "fuzzed"

    def __init__(self) -> None:
        self.size = 0
        self.upstream = Calls()

    def answered(self, link: Any, answer: frames.Answer) -> None:
        assert answer.status == 200 or 400 <= answer.status < 600
        self.size += len(answer.body)

    def part(self, link: Any, rid: int, chunk: bytes) -> None:
        self.size += len(chunk)

    def logged(self, link: Any, rid: int, entry: dict[str, Any]) -> None:
        assert isinstance(entry, dict)

    def called(self, calls: Mapping[str, int], breaker: str) -> str:
        return self.upstream.called(calls, breaker)

    def pump(self) -> None:
        """Nothing waits."""

    def said(self, link: Any, line: str) -> None:
        line.encode()


@target
def worker_frames(data: bytes) -> None:
    """First byte: in pieces of how many bytes the rest comes from a worker."""
    garbled(data)


def garbled(data: bytes) -> bool:
    """Whether the worker that sent ``worker_frames``' bytes was ended for them."""
    killed: list[int] = []

    async def run() -> None:
        process = SimpleNamespace(pid=1, pidfd=None, kill=lambda: killed.append(1))
        link = links.WorkerLink(cast(Any, _Recorder()), 1, cast(Any, process), cast(Any, None))
        piece = max(1, data[0]) if data else 1
        for start in range(1, len(data), piece):
            if killed:
                break
            link.data_received(data[start : start + piece])
            assert len(link._buffer) <= len(data)
        link._printed(data)
        if link.ready.done() and (fault := link.ready.result()):
            assert fault["en"]["title"] is not None
            assert fault["zh"]["hint"] is not None
        elif link.ready.done():
            assert 1 <= link.max_batch <= frames.LARGEST_BATCH
            assert link.concurrency >= 0

    logged, logs.event = logs.event, lambda *_, **__: None
    try:
        asyncio.run(run())
    finally:
        logs.event = logged
    return bool(killed)


@target
def elements(data: bytes) -> None:
    """First byte: in pieces of how many bytes the rest comes as the body of a batch."""
    piece, content = (max(1, data[0]), data[1:]) if data else (1, b"")
    found: list[bytes] = []
    cutter = Elements(200, "fuzzed")
    try:
        with only_the_clients_fault():
            for start in range(0, len(content), piece):
                found += cutter.feed(content[start : start + piece])
                assert len(cutter._buffer) <= 200
            found += cutter.close()
            if cutter.array and len(content) < 150:
                try:
                    wanted = json.loads(content)
                except (ValueError, RecursionError):
                    return
                assert [json.loads(each) for each in found] == wanted or b"NaN" in content
    finally:
        assert sum(map(len, found)) <= len(content)


@target
def pictures(data: bytes) -> None:
    """A file that claims to be a picture."""
    for read in (images.read_image, images.read_mask, images.size_of):
        with only_the_clients_fault():
            found = read(data, max_pixels=1_000_000) if read is not images.size_of else read(data)
            if isinstance(found, np.ndarray):
                assert found.size <= 3_000_000


@target
def tensors(data: bytes) -> None:
    """First two bytes: length of the JSON header; then a v2 inference request."""
    inputs = (Declared("a", "FP32", (-1, 4), "float32"), Declared("b", "INT64", (-1, -1), "int64"), Declared("c", "BYTES", (-1,)))
    length = int.from_bytes(data[:2], "little")
    with only_the_clients_fault():
        asked = tensor_codec.read(memoryview(data[2:]), length, inputs, (Declared("y", "FP32", (-1, 2), "float32"),))
        assert sum(getattr(array, "nbytes", 0) for array in asked.inputs.values()) <= 64 * len(data) + 64
