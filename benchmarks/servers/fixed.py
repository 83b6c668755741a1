"""Answers every read with one fixed answer and parses nothing, so that what is measured is the load itself: ``fixed.py PORT``."""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

BODY = b'{"label":"calm","score":0.5}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Fixed(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        # A client that sends its headers first gets its answer when the body has come.
        if not data.endswith(b"\r\n\r\n"):
            self.transport.write(ANSWER)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Fixed, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
