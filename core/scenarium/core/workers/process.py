"""The life of one worker process: hello, load, check, ready, run.

Started by fork from a zygote, or as ``python -m scenarium.core.workers.process FD`` where fork is unsafe.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scenarium.core import devices, heap
from scenarium.core.errors import ScenariumError
from scenarium.core.manifest import Manifest
from scenarium.core.registry import Plugin, Registry, Scenario
from scenarium.core.runtime import Runtime
from scenarium.core.settings import Flat, Origin, Settings
from scenarium.core.traces import print_fault
from scenarium.core.workers import frames, group
from scenarium.core.workers.spans import Spans
from scenarium.core.workers.worker import Worker

THREADS = ("SCENARIUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")
"""The variables from which our engines, torch and tokenizers take the size of their pools."""


def serve(sock: socket.socket, alone: bool = True) -> None:
    """Be the worker of ``sock`` until it is drained. ``alone``: the process has no other."""
    reader = frames.Reader(sock)
    received = reader()
    if received is None:
        return
    kind, body = received
    hello = json.loads(bytes(body))
    if kind != frames.HELLO or hello["proto"] != frames.PROTO:
        raise ValueError(f"frame {kind} of protocol {hello.get('proto')}")
    if "group" in hello:
        return group.host(sock, partial(serve, alone=False))
    began = time.monotonic()
    try:
        if "nice" in hello and hasattr(os, "nice"):
            os.nice(hello["nice"])  # before any thread is there: each takes it from the one that starts it
        set_threads(hello["threads"])
        spans = Spans(hello["scenario"]) if hello["tracing"] else None
        runtime = open_runtime(hello)
    except BaseException as fault:  # a plugin may raise SystemExit
        sock.sendall(json_fault(fault, hello["scenario"]))
        return
    manifest = Manifest.model_validate(hello["manifest"])
    schema = json.dumps([manifest.request_schema, manifest.response_schema], sort_keys=True).encode()
    ready = {
        "proto": frames.PROTO,
        "pid": os.getpid(),
        "schema": hashlib.sha256(schema).hexdigest(),
        "max_batch": runtime.max_batch_size,
        "concurrency": runtime.traits.concurrency,
        "pure": runtime.traits.pure,
        "streams": runtime.traits.streams,
        "device_memory": devices.memory_of(runtime.model),
        "load_ms": round((time.monotonic() - began) * 1000),
    }
    if alone:  # a group gives back what a member frees
        heap.keep_freed()  # after the load, whose own large blocks are used once
    worker = Worker(sock, reader, runtime, spans, alone)
    worker.send(frames.json_frame(frames.READY, ready))
    worker.run()
    runtime.close()
    if spans:
        spans.close()


def open_runtime(hello: dict[str, Any]) -> Runtime:
    """Import the plugin, load the version and let it answer its own sample.

    Raises:
        ScenariumError: whatever is wrong with plugin, settings or version; among it that the answer to the sample changed.
    """
    manifest = Manifest.model_validate(hello["manifest"])
    flat: Flat = {("scenarios", hello["scenario"], *key): (value, Origin(*origin)) for key, value, origin in hello["serve"]}
    settings = Settings(flat, None)
    scenario = Scenario(hello["scenario"], Plugin(**hello["plugin"]), settings, Registry(settings, {}).extensions)
    return Runtime.open(scenario, Path(hello["folder"]), manifest, devices.choose(hello["device"]))


def json_fault(fault: BaseException, name: str) -> bytes:
    """The frame that tells why the worker cannot serve. The traceback goes to the log."""
    if isinstance(fault, ScenariumError):
        if fault.__cause__ is not None:
            print_fault(fault.__cause__)
    else:
        print_fault(fault)
        fault = ScenariumError("SCN-4003", name=name, reason=f"{type(fault).__name__}: {fault}")
    return frames.json_frame(frames.FAULT, {"code": fault.code, "en": fault.problem("en"), "zh": fault.problem("zh")})


def set_threads(threads: int) -> None:
    """Limit the pools of the libraries that this process has imported or will import."""
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


def main(argv: Sequence[str]) -> None:
    """Serve the socket whose number is the only argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve(socket.socket(fileno=int(argv[1])))


if __name__ == "__main__":
    main(sys.argv)
