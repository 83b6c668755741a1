"""A small service in another interpreter, for the tests of environments and of the engine that asks them."""

from __future__ import annotations

import sys
from pathlib import Path

from scenarium.core import environments
from scenarium.core.types import Environment

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"
FOUND = [version for version in ("3.10", "3.12", "3.13", "3.9") if version != OWN and environments.find_python(version)] or [OWN]
"""Other Python versions of this machine: an environment is for another interpreter than this one, where there is one."""

SERVICE = """
import asyncio, os, sys, time
from scenarium_environment import Fault

class Service:
    ready = {"colour": "blue"}
    def __init__(self, settings):
        self.settings = settings
    async def echo(self, value=None, body=b""):
        return body if body else value
    async def slow(self, seconds):
        await asyncio.sleep(seconds)
        return seconds
    async def hang(self, seconds):
        time.sleep(seconds)
    def blocking(self, seconds):
        time.sleep(seconds)
        return "done"
    async def noise(self):
        print("printed to stdout")
        os.system("echo printed by a child")
        return self.settings
    async def crash(self):
        print("about to go", file=sys.stderr, flush=True)
        os._exit(9)
    async def fail(self):
        raise ValueError("a plain exception")
    async def fault(self):
        raise Fault("SCN-6011", name="from inside")
    async def unsendable(self):
        return object()
    async def count(self, to, pause=0.0):
        try:
            for number in range(to):
                yield number
                await asyncio.sleep(pause)
        finally:
            self.closed = to
    async def was_closed(self):
        return getattr(self, "closed", None)

def start(settings):
    if settings.get("refuse"):
        raise Fault("SCN-6011", name="refused")
    if settings.get("die"):
        sys.exit(3)
    if settings.get("dawdle"):
        time.sleep(60)
    return Service(settings)
"""


def declare(folder: Path, lock: str, *versions: str) -> Environment:
    folder.mkdir(exist_ok=True)
    (folder / "env_main.py").write_text(SERVICE, encoding="utf8")
    for version in versions:
        (folder / f"lock-{version}.txt").write_text(lock, encoding="utf8")
    return Environment("little", versions, folder)
