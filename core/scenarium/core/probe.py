"""A plugin's health, found by importing it in a process of its own, and remembered until one of its files changes.

What only a probe needs is imported there: ``scenarium list`` reads what is known, and must be quick.

``python -m scenarium.core.probe`` is that process: whatever the import does there (exits, hangs, crashes) harms no one.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scenarium.core.errors import ScenariumError, Words
from scenarium.core.registry import Plugin
from scenarium.core.settings import cache_home

if TYPE_CHECKING:
    import subprocess

LIMIT_S = 20.0
"""An import that takes longer counts as hanging."""
REQUIRED = ("fields", "schema", "sample", "metric", "score")
"""Hooks without a default."""
MEASURED = ("score",)
"""What a generic plugin may leave away: nothing that was imported is measured."""


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of a plugin. ``unknown``: not probed yet, or changed since."""

    state: Literal["ok", "broken", "unknown"]
    error: ScenariumError | None = None
    seconds: float | None = None
    """How long the import took."""


def known(plugin: Plugin) -> Health:
    """The health from metadata and from the last probe; starts nothing and imports no plugin."""
    if plugin.error:
        return Health("broken", plugin.error)
    try:
        stored = json.loads(_memory(plugin).read_text(encoding="utf8"))
        if stored["key"] == _key(plugin):
            return _health(stored["health"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return Health("unknown")


def probe(plugins: Sequence[Plugin], *, limit_s: float = LIMIT_S, fresh: bool = False) -> dict[str, Health]:
    """Health by plugin name; those not known (with ``fresh``: all) are imported now, several at a time."""
    from concurrent.futures import ThreadPoolExecutor

    found = {plugin.name: known(plugin) for plugin in plugins}
    todo = [plugin for plugin in plugins if not plugin.error and (fresh or found[plugin.name].state == "unknown")]
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        for plugin, health in zip(todo, pool.map(lambda plugin: _probe(plugin, limit_s), todo), strict=True):
            found[plugin.name] = health
    return found


def _probe(plugin: Plugin, limit_s: float) -> Health:
    import subprocess
    import tempfile

    key = _key(plugin)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="scenarium-probe-") as scratch:
        answer = Path(scratch) / "health.json"
        # A session of its own, so that what the plugin may have started ends with it.
        child = subprocess.Popen(
            [sys.executable, "-m", "scenarium.core.probe", json.dumps(asdict(plugin)), str(answer)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            _, stderr = child.communicate(timeout=limit_s)
            text = answer.read_text(encoding="utf8") if answer.is_file() else ""
            health = _health(json.loads(text)) if text else Health("broken", _died(plugin, child.returncode, stderr.decode("utf8", "replace")))
        except subprocess.TimeoutExpired:
            _end(child)
            reason = Words(f"its import did not end within {limit_s:g} s", f"导入在 {limit_s:g} 秒内没有结束")
            waits = Words("Remove what waits (input, network, a server) from the module's top level.", "请从模块顶层移除会等待的代码（输入、网络、服务器）。")
            health = Health("broken", plugin.broken(reason, waits), time.monotonic() - began)
    with contextlib.suppress(OSError):  # without a cache folder it is probed again next time
        memory = _memory(plugin)
        memory.parent.mkdir(parents=True, exist_ok=True)
        part = memory.with_name(f".{memory.name}.{os.getpid()}.{plugin.name}")
        part.write_text(json.dumps({"key": key, "health": _json(health)}, ensure_ascii=False), encoding="utf8")
        os.replace(part, memory)
    return health


def _end(child: subprocess.Popen[bytes]) -> None:
    import signal

    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.communicate()


def _died(plugin: Plugin, code: int, stderr: str) -> ScenariumError:
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    last = (stderr.strip().splitlines() or [""])[-1][:200]
    reason = Words(f"the interpreter ended while it was imported ({how}) {last}".strip(), f"导入时解释器退出（{how}）{last}")
    return plugin.broken(reason, Words("Correct the plugin, or install another version of it.", "请修正该插件，或安装其他版本。"))


def _memory(plugin: Plugin) -> Path:
    return cache_home() / "probes" / f"{plugin.name}-{hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]}.json"


def _key(plugin: Plugin) -> str:
    """Changes when the plugin's files do (path, size, time), or Scenarium or the interpreter."""
    from scenarium.core import __version__

    digest = hashlib.sha256(repr((plugin.target, plugin.distribution, plugin.version, plugin.hook_api, __version__, sys.version)).encode())
    for path, stat in _files(plugin.target):
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files(target: str) -> Iterator[tuple[str, os.stat_result]]:
    """The files of the plugin's top-level package. Finding a top-level package imports nothing; an editable install has no other list."""
    if target.endswith(".py"):
        yield target, os.stat(target)
        return
    top = target.partition(":")[0].partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return
    folders = list(spec.submodule_search_locations or [])
    if not folders and spec.origin:
        yield spec.origin, os.stat(spec.origin)
    while folders:
        for entry in sorted(os.scandir(folders.pop()), key=lambda e: e.name):
            if entry.is_dir():
                if entry.name != "__pycache__":
                    folders.append(entry.path)
            else:
                yield entry.path, entry.stat()


def _json(health: Health) -> dict[str, Any]:
    error = health.error
    if error is None:
        return {"state": health.state, "seconds": health.seconds}
    values = {key: {"en": value.en, "zh": value.zh} if isinstance(value, Words) else value for key, value in error.values.items()}
    return {
        "state": health.state,
        "seconds": health.seconds,
        "error": {"code": error.code, "field": error.field, "file": error.file, "line": error.line, "values": values},
    }


def _health(stored: dict[str, Any]) -> Health:
    error = None
    if fault := stored.get("error"):
        values = {key: Words(**value) if isinstance(value, dict) else value for key, value in fault["values"].items()}
        error = ScenariumError(fault["code"], field=fault["field"], file=fault["file"], line=fault["line"], **values)
    return Health(stored["state"], error, stored.get("seconds"))


def examine(plugin: Plugin) -> Health:
    """Import the plugin here and now, join it to a relay and ask for its settings and schema."""
    from pydantic import ValidationError

    from scenarium.core.registry import Scenario
    from scenarium.core.relay import implemented
    from scenarium.core.settings import Settings

    began = time.monotonic()
    scenario = Scenario(plugin.name, plugin, Settings({}, None))
    try:
        hook = scenario.hook
        required = [name for name in REQUIRED if not (plugin.generic and name in MEASURED)]
        if missing := [name for name in required if name not in implemented(scenario.implementation)]:
            names = ", ".join(missing)
            reason = Words(f"it does not implement {names}", f"它没有实现 {names}")
            remedy = Words("Implement these hooks: see the hook reference.", "请实现这些钩子：见钩子参考。")
            return Health("broken", plugin.broken(reason, remedy))
        with contextlib.suppress(ValidationError):  # settings without a default are the user's to give
            hook.schema(config=hook.config()())
    except ScenariumError as fault:
        return Health("broken", fault, time.monotonic() - began)
    except Exception as fault:
        from scenarium.core.registry import import_fault

        return Health("broken", plugin.broken(*import_fault(fault)), time.monotonic() - began)
    return Health("ok", None, time.monotonic() - began)


def _main(text: str, answer: str) -> None:
    health = examine(Plugin(**json.loads(text)))
    part = Path(f"{answer}.part")
    part.write_text(json.dumps(_json(health)), encoding="utf8")
    part.replace(answer)  # whoever reads it sees all of it or nothing


if __name__ == "__main__":
    _main(*sys.argv[1:])
