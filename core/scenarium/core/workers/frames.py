"""The worker protocol: full-duplex frames over a Unix stream socket. Version 1.

Every frame is ``length: u32`` (of what follows), ``kind: u8``, then the kind's own layout. All integers are little-endian.

To the worker:

========= ==== ====================================================================================================
hello      1   JSON: ``proto``, ``scenario``, ``plugin``, ``serve``, ``manifest``, ``folder``, ``device``, ``threads``; ``nice``.
               ``serve`` lists the settings: key, value, origin; ``tracing``: whether the worker sends spans
batch      2   ``count: u16``, then ``count`` items (below)
cancel     3   ``rid: u64``: nobody waits for this answer any more
drain      4   finish what is open, then exit 0
ping       5   ``token: u64``
========= ==== ====================================================================================================

An item is ``rid: u64, body: u32, remaining_ms: u32, mode: u8 (0 predict, 1 stream, 2 infer), language: u8 (0 en, 1 zh),
content_type: u16, trace: u16, key: u16`` (lengths in bytes), then content type, trace context, routing key and body.
The body of an ``infer`` item is that of a v2 request: JSON header and tensors (``scenarium.core.tensors``); its content type is the header's
length (0: the whole body), a space and the model's name. The answer starts with ``scenarium.core.tensors.HEAD``.

From the worker:

========= ==== ====================================================================================================
ready     65   JSON: ``proto``, ``pid``, ``schema`` (SHA-256), ``max_batch``, ``concurrency``, ``pure``, ``streams``,
               ``load_ms``, ``device_memory`` (see pong)
item      66   ``rid: u64, status: u16, queue: u32, preprocess: u32, forward: u32, postprocess: u32`` (µs), then the body:
               the answer's JSON where status is 200, else problem details (RFC 9457). Items are answered in any order
chunk     67   ``rid: u64``, then one part of a streamed answer (JSON)
end       68   as item; closes a stream, the body is empty where status is 200
fault     69   JSON: why the worker cannot serve (``code``, ``en``, ``zh``: problem details); it exits after it
pong      70   ``token: u64``, then JSON: the accelerator's ``[name, bytes held, bytes free, bytes in all]``, or null
log       71   ``rid: u64``, then JSON: one masked log entry
figures   72   JSON: ``calls`` of the model to another server since the last such frame, by what became of them, and the ``breaker``'s state
========= ==== ====================================================================================================
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

PROTO = 1

HELLO, BATCH, CANCEL, DRAIN, PING = 1, 2, 3, 4, 5
READY, ITEM, CHUNK, END, FAULT, PONG, LOG, FIGURES = 65, 66, 67, 68, 69, 70, 71, 72

HEAD = struct.Struct("<IB")
RID = struct.Struct("<Q")
COUNT = struct.Struct("<H")
ASK = struct.Struct("<QIIBBHHH")
ANSWER = struct.Struct("<QHIIII")

PREDICT, STREAM, INFER = 0, 1, 2
LANGUAGES = ("en", "zh")
LARGEST_BATCH = 65_535
"""Most items of one batch frame."""
LARGEST = 1 << 31
"""Longest frame that a worker accepts; a longer one means that the two sides have lost step."""
LARGEST_ANSWER = 1 << 28
"""Longest frame that the gateway accepts from a worker, whose code is not the gateway's own."""


class Item(NamedTuple):
    """One request on its way to a worker."""

    rid: int
    body: bytes
    content_type: str
    remaining_ms: int
    mode: int = PREDICT
    language: str = "en"
    trace: str = ""
    key: str = ""


class Answer(NamedTuple):
    """One answer on its way back. Times are microseconds."""

    rid: int
    status: int
    queue: int
    preprocess: int
    forward: int
    postprocess: int
    body: bytes


def frame(kind: int, *parts: bytes) -> bytes:
    """One frame with its length."""
    return b"".join((HEAD.pack(1 + sum(map(len, parts)), kind), *parts))


def json_frame(kind: int, value: Any) -> bytes:
    """A frame whose body is JSON."""
    return frame(kind, json.dumps(value, ensure_ascii=False).encode())


def rid_frame(kind: int, rid: int, body: bytes = b"") -> bytes:
    """A frame that starts with a request id (or a token)."""
    return HEAD.pack(9 + len(body), kind) + RID.pack(rid) + body


def batch_frame(items: Iterable[Item]) -> bytes:
    """Many items in one write."""
    parts: list[bytes] = []
    length = count = 0
    for rid, body, content_type, remaining, mode, language, trace, key in items:
        kind, mark, route = content_type.encode("latin-1", "replace"), trace.encode("latin-1", "replace"), key.encode()
        header = ASK.pack(rid, len(body), remaining, mode, language == "zh", len(kind), len(mark), len(route))
        parts += (header, kind, mark, route, body)
        length += ASK.size + len(kind) + len(mark) + len(route) + len(body)
        count += 1
    return b"".join((HEAD.pack(1 + COUNT.size + length, BATCH), COUNT.pack(count), *parts))


def read_batch(body: memoryview) -> list[Item]:
    """The items of a batch frame's body.

    Raises:
        ValueError: it is cut off, or longer than its items.
        struct.error: it is cut off within an item's header.
    """
    (count,) = COUNT.unpack_from(body)
    at = COUNT.size
    items = []
    for _ in range(count):
        rid, length, remaining, mode, chinese, kind, mark, route = ASK.unpack_from(body, at)
        at += ASK.size
        a, b, c = at + kind, at + kind + mark, at + kind + mark + route
        strings = str(body[at:a], "latin-1"), str(body[a:b], "latin-1"), str(body[b:c], "utf8")
        at = c + length
        items.append(Item(rid, bytes(body[c:at]), strings[0], remaining, mode, LANGUAGES[bool(chinese)], strings[1], strings[2]))
    if at != len(body):
        raise ValueError(f"items of {at} bytes in {len(body)}")
    return items


def answer_frame(answer: Answer, kind: int = ITEM) -> bytes:
    """One answer, or the end of a stream."""
    rid, status, queue, preprocess, forward, postprocess, body = answer
    return b"".join((HEAD.pack(1 + ANSWER.size + len(body), kind), ANSWER.pack(rid, status, queue, preprocess, forward, postprocess), body))


def read_answer(body: memoryview) -> Answer:
    """The answer in an item's or end's body.

    Raises:
        ValueError: the status is none that an answer has.
        struct.error: it is cut off.
    """
    rid, status, queue, preprocess, forward, postprocess = ANSWER.unpack_from(body)
    if status != 200 and not 400 <= status <= 599:
        raise ValueError(f"an answer with status {status}")
    return Answer(rid, status, queue, preprocess, forward, postprocess, bytes(body[ANSWER.size :]))


class Reader:
    """Blocking frames from a socket. One thread reads; others may write to the same socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = bytearray(256 * 1024)
        self.start = self.end = 0

    def __call__(self) -> tuple[int, memoryview] | None:
        """The next frame's kind and body, or None at the end. The body is valid until the next call.

        Raises:
            ValueError: the length is not that of a frame.
        """
        if not self._fill(4):
            return None
        length = int.from_bytes(self.buffer[self.start : self.start + 4], "little")
        if not 1 <= length <= LARGEST:
            raise ValueError(f"a frame of {length} bytes")
        if not self._fill(4 + length):
            return None
        at = self.start + 4
        self.start = at + length
        return self.buffer[at], memoryview(self.buffer)[at + 1 : self.start]

    def _fill(self, wanted: int) -> bool:
        """Have ``wanted`` bytes from ``start`` on."""
        if self.start == self.end:
            self.start = self.end = 0
        if self.start + wanted > len(self.buffer):
            # A new buffer, since the last frame's view may still hold the old one.
            rest = self.buffer[self.start : self.end]
            self.buffer = bytearray(max(256 * 1024, wanted + 4096))
            self.buffer[: len(rest)] = rest
            self.start, self.end = 0, len(rest)
        while self.end - self.start < wanted:
            received = self.sock.recv_into(memoryview(self.buffer)[self.end :])
            if not received:
                return False
            self.end += received
        return True
