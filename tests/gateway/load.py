"""Clients that load a real gateway and know of each request how it ended: plain HTTP/1.1 over kept connections, on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, NamedTuple


class Unanswered(Exception):
    """The connection ended before there was a whole answer; the argument is what had come of it."""


class Answer(NamedTuple):
    """One whole answer."""

    status: int
    headers: dict[bytes, bytes]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error, else nothing."""
        return "" if self.status < 400 else str(self.json.get("code", ""))


class Client:
    """One connection at a time, opened when it is needed and kept."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.address = (host, int(port))
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, path: str, body: bytes | None = None, *more: bytes, method: str = "") -> None:
        """Send one request; ``more`` are whole header lines.

        Raises:
            Unanswered: nobody listens, or the kept connection is closed.
        """
        method = method or ("GET" if body is None else "POST")
        lines = [b"%s %s HTTP/1.1" % (method.encode(), path.encode()), b"Host: x", *more]
        if body is not None:
            lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
        try:
            if self.streams is None:
                self.streams = await asyncio.open_connection(*self.address)
            self.streams[1].write(b"\r\n".join([*lines, b"", body or b""]))
        except OSError as fault:
            await self.close()
            raise Unanswered(b"") from fault

    async def receive(self) -> Answer:
        """The next answer.

        Raises:
            Unanswered.
        """
        assert self.streams
        reader, came = self.streams[0], b""
        try:
            came = await reader.readuntil(b"\r\n\r\n")
            first, *lines = came[:-4].split(b"\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
            length = int(headers.get(b"content-length", b"0"))
            body = await _chunks(reader) if headers.get(b"transfer-encoding") == b"chunked" else await reader.readexactly(length)
        except asyncio.IncompleteReadError as fault:
            await self.close()
            raise Unanswered(came + fault.partial) from None
        except OSError as fault:
            await self.close()
            raise Unanswered(came) from fault
        if headers.get(b"connection") == b"close":
            await self.close()
        return Answer(int(first.split()[1]), headers, body)

    async def ask(self, path: str, body: bytes | None = None, *more: bytes, method: str = "") -> Answer:
        """Send one request and wait for its answer.

        Raises:
            Unanswered.
        """
        await self.send(path, body, *more, method=method)
        return await self.receive()

    async def close(self, *, abort: bool = False) -> bytes:
        """Close the connection, or tear it (``abort``); what came that nobody asked for."""
        if self.streams is None:
            return b""
        (reader, writer), self.streams = self.streams, None
        if abort:
            writer.transport.abort()
        else:
            writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        with contextlib.suppress(OSError):
            return await reader.read()
        return b""


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A body in chunks."""
    found = bytearray()
    while size := int(await reader.readuntil(b"\r\n"), 16):
        found += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return bytes(found)
