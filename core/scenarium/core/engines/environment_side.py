"""What runs inside an environment: reads requests from stdin, calls the plugin's ``env_main.py``, writes answers to stdout.

Started by path (``<environment>/bin/python -I environment_side.py env_main.py``) by an interpreter that has no Scenarium, so it is standard
library only and valid from Python 3.8 on. Protocol 1; every frame is ``header length: u32, body length: u32`` (big-endian), a JSON header, raw bytes:

=============== =======================================================================================
to here         ``{"settings": …}`` once; ``{"id", "method", "args"}`` with a body; ``{"cancel": id}``
from here       ``{"ready": …}`` or ``{"error": …}`` once; ``{"id", "value"}`` with a body;
                ``{"id", "chunk"}`` …, ``{"id", "value"}``; ``{"id", "error": {"code", "values"}}``
=============== =======================================================================================

``env_main.py`` imports only the standard library at its top and defines ``start(settings) -> service`` (may be ``async``; here belong heavy imports,
loading and warm-up). The service's public methods are what can be called: ``async def`` runs on the loop, ``def`` on a thread, an async generator
streams; ``body`` is passed where bytes came, and ``bytes`` may be returned. ``service.ready``, a dict, goes back with the ready message.
``from scenarium_environment import Fault`` gives the exception that crosses as a code of the catalogue.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import os
import platform
import signal
import struct
import sys
import threading
import time
import traceback
from types import ModuleType
from typing import IO, Any

PROTO = 1
SIZES = struct.Struct(">II")
GRACE = 3.0
"""Seconds that open work has after the other side closed, before the process ends regardless."""


class Fault(Exception):
    """An error with a code of Scenarium's catalogue and the values of its text."""

    def __init__(self, code: str, **values: Any) -> None:
        super().__init__(code, values)
        self.code = code
        self.values = values


def read_frame(source: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Return (header, body), or None at the end of the stream."""
    sizes = source.read(SIZES.size)
    if len(sizes) < SIZES.size:
        return None
    head, tail = SIZES.unpack(sizes)
    header, body = source.read(head), source.read(tail)
    return (json.loads(header), body) if len(header) == head and len(body) == tail else None


def write_frame(sink: IO[bytes], header: dict[str, Any], body: bytes | bytearray | memoryview = b"") -> None:
    """Write one frame and flush."""
    data = json.dumps(header, ensure_ascii=False).encode("utf-8")
    sink.write(SIZES.pack(len(data), len(body)) + data)
    sink.write(body)
    sink.flush()


class Side:
    """One service behind one pair of streams."""

    def __init__(self, source: IO[bytes], sink: IO[bytes]) -> None:
        self.source = source
        self.sink = sink
        self.writing = threading.Lock()
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.service: Any = None

    async def run(self, script: str) -> None:
        """Start the service, then answer until the other side closes."""
        loop = asyncio.get_running_loop()
        self.closed = asyncio.Event()
        first = await loop.run_in_executor(None, read_frame, self.source)
        if first is None:
            return
        # The reader stands on a thread of its own from here on, so the end of the other side is noticed whatever the loop is busy with.
        threading.Thread(target=self.read, args=(loop,), daemon=True).start()
        try:
            self.service = load(script).start(first[0]["settings"])
            if inspect.isawaitable(self.service):
                self.service = await self.service
        except BaseException as fault:
            self.send({"error": describe(fault)})
            return
        ready = {"proto": PROTO, "pid": os.getpid(), "python": platform.python_version()}
        ready.update(getattr(self.service, "ready", {}))
        self.send({"ready": ready})
        await self.closed.wait()

    def read(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand every frame to the loop; at the end give open work its grace, then end the process."""
        while True:
            frame = read_frame(self.source)
            if frame is None:
                break
            loop.call_soon_threadsafe(self.dispatch, *frame)
        loop.call_soon_threadsafe(self.closed.set)
        time.sleep(GRACE)
        os._exit(0)

    def dispatch(self, header: dict[str, Any], body: bytes) -> None:
        """Begin or cancel one request. Runs on the loop, in the order of arrival."""
        if "cancel" in header:
            task = self.tasks.get(header["cancel"])
            if task:
                task.cancel()
            return
        task = asyncio.ensure_future(self.answer(header, body))
        self.tasks[header["id"]] = task
        task.add_done_callback(lambda _: self.tasks.pop(header["id"], None))

    async def answer(self, header: dict[str, Any], body: bytes) -> None:
        """Call the method and send its value or its error."""
        ident = header["id"]
        try:
            value = await self.call(ident, header["method"], dict(header["args"]), body)
            if isinstance(value, (bytes, bytearray, memoryview)):
                self.send({"id": ident, "value": None, "bytes": True}, value)
            else:
                self.send({"id": ident, "value": value})
        except asyncio.CancelledError:
            pass
        except Exception as fault:
            self.send({"id": ident, "error": describe(fault)})

    async def call(self, ident: int, name: str, args: dict[str, Any], body: bytes) -> Any:
        """Find and run one method of the service, by its kind."""
        if name == "_ping":
            return None
        if body:
            args["body"] = body
        method = None if name.startswith("_") else getattr(self.service, name, None)
        if not callable(method):
            raise AttributeError("env_main.py has no method " + repr(name))
        if inspect.isasyncgenfunction(method):
            async for part in method(**args):
                self.send({"id": ident, "chunk": part})
            return None
        if inspect.iscoroutinefunction(method):
            return await method(**args)
        return await asyncio.get_running_loop().run_in_executor(None, lambda: method(**args))

    def send(self, header: dict[str, Any], body: bytes | bytearray | memoryview = b"") -> None:
        """Write one frame; may be called from any thread."""
        try:
            with self.writing:
                write_frame(self.sink, header, body)
        except BrokenPipeError:
            self.closed.set()


def describe(fault: BaseException) -> dict[str, Any]:
    """The JSON form of an exception; its traceback goes to stderr, which the other side logs."""
    if isinstance(fault, Fault):
        return {"code": fault.code, "values": fault.values}
    traceback.print_exception(type(fault), fault, fault.__traceback__)
    return {"code": "SCN-6010", "values": {"reason": type(fault).__name__ + ": " + str(fault)}}


def load(script: str) -> ModuleType:
    """Import ``env_main.py`` by its path; its folder joins the module search path."""
    sys.modules["scenarium_environment"] = sys.modules[__name__]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    spec = importlib.util.spec_from_file_location("env_main", script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["env_main"] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Take stdin and stdout for frames; whatever else prints goes to stderr."""
    # Ctrl-C goes to the whole terminal; this process ends when its owner closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    asyncio.run(Side(source, sink).run(sys.argv[1]))
    # Threads of the libraries inside must not keep a finished process alive.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
