"""A version that answers whole requests over standard input and output: what ``model.py`` starts for Triton's python backend.

``python -m scenarium.core.triton.answering STORE NAME NUMBER``. Both ways numbers are little-endian ``u32``. In: how many bodies, then each with its length
before it. Out, first when it is ready and then after each request: a status, how many elements, then each with its length before it; with another status
than 200 the one element is the error's text. It leaves at the end of its input.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Sequence
from typing import BinaryIO

from scenarium.core import devices
from scenarium.core.errors import ScenariumError, language
from scenarium.core.registry import Registry, Scenario
from scenarium.core.runtime import Runtime
from scenarium.core.settings import Settings
from scenarium.core.store import Store
from scenarium.core.workers.process import set_threads

NUMBER = struct.Struct("<I")


def main(url: str, name: str, number: int) -> int:
    """Answer until the end of the input; the exit status."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a plugin prints belongs into Triton's log
    try:
        runtime = load(url, name, number)
    except Exception as fault:
        tell(out, *problem(fault))
        return 1
    tell(out, 200, [])
    while (bodies := receive(sys.stdin.buffer)) is not None:
        tell(out, *answer(runtime, bodies))
    runtime.close()
    return 0


def load(url: str, name: str, number: int) -> Runtime:
    """Load a version as a worker of the gateway does.

    Raises:
        ScenariumError: whatever is wrong with plugin, settings or version.
    """
    registry = Registry(Settings.read(sets=[f"scenarium.store={url}"]))
    version = Store(url).open(name, number)
    made = version.manifest.plugin.name
    plugin = registry.plugin(name) if name in registry.names() or made not in registry.plugins else registry.plugins[made]
    scenario = Scenario(name, plugin, registry.settings, registry.extensions)
    serve = scenario.config.serve
    set_threads(serve.threads or 1)
    return Runtime.open(scenario, version.folder, version.manifest, devices.choose(serve.device))


def answer(runtime: Runtime, bodies: Sequence[bytes]) -> tuple[int, list[bytes]]:
    """Status and answers; where one fails, its error is that of all, as over the gateway's own v2 protocol."""
    try:
        answers = runtime.predict([runtime.decode(body, "") for body in bodies])
    except ScenariumError as fault:
        return problem(fault)
    failed = next((each for each in answers if isinstance(each, Exception)), None)
    if failed:
        return problem(failed)
    return 200, [each.model_dump_json().encode() for each in answers if not isinstance(each, Exception)]


def problem(fault: Exception) -> tuple[int, list[bytes]]:
    """Status and sentence of an error."""
    error = fault if isinstance(fault, ScenariumError) else ScenariumError("SCN-4003", name="-", reason=f"{type(fault).__name__}: {fault}")
    lang = language()
    return error.status, [f"{error.code}: {error.title(lang)} {error.hint(lang)}".encode()]


def receive(source: BinaryIO) -> list[bytes] | None:
    """The bodies of the next request; None: there is none."""
    head = source.read(NUMBER.size)
    if len(head) < NUMBER.size:
        return None
    return [source.read(_number(source)) for _ in range(NUMBER.unpack(head)[0])]


def _number(source: BinaryIO) -> int:
    return int(NUMBER.unpack(source.read(NUMBER.size))[0])


def tell(out: BinaryIO, status: int, elements: Sequence[bytes]) -> None:
    """Write one answer."""
    out.write(NUMBER.pack(status) + NUMBER.pack(len(elements)) + b"".join(NUMBER.pack(len(each)) + each for each in elements))
    out.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
