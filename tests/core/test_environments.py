"""Environments are made from locks and asked over pipes: with real interpreters, real processes and real wheels, without network."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scenarium.core import environments
from scenarium.core.engines import environment_side
from scenarium.core.engines.environment_engine import EnvironmentEngine, EnvironmentProcess
from scenarium.core.errors import ScenariumError
from scenarium.core.progress import Progress
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


def wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel with one module, as the packaging standard wants it."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, done: int, **values: float) -> None:
        self.done += done


def declare(folder: Path, lock: str, *versions: str) -> Environment:
    folder.mkdir(exist_ok=True)
    (folder / "env_main.py").write_text(SERVICE, encoding="utf8")
    for version in versions:
        (folder / f"lock-{version}.txt").write_text(lock, encoding="utf8")
    return Environment("little", versions, folder)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of the test's own, and wheels in place of an index."""
    for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS"):
        monkeypatch.setenv(name, str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_INDEX_URL", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "wheels").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """An environment without packages, for the process tests."""
    folder = tmp_path_factory.mktemp("environment")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_DATA_HOME", str(folder / "data"))
    environment = declare(folder / "little", "# nothing\n", FOUND[0])
    environments.create(environment)
    yield environment
    patch.undo()


@pytest.fixture(scope="module")
def process(made: Environment) -> Iterator[EnvironmentProcess]:
    with_settings = EnvironmentProcess(made, {"word": "你好"})
    with_settings.wait_ready(30)
    yield with_settings
    with_settings.close()
    assert with_settings.popen.returncode == 0


def gone(pid: int) -> bool:
    """Whether a process that is no child of ours has ended (a zombie has)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


def until(condition: Callable[[], bool], seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


# ── making ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_installed_by_asking_for_it(home: Path) -> None:
    environment = declare(home / "little", "tiny==1.0\n", FOUND[0])
    with pytest.raises(ScenariumError) as caught:
        environments.require(environment)
    assert caught.value.code == "SCN-6004"
    assert "scenarium env create little" in caught.value.hint("en")
    assert not environments.root().exists()


def test_create_installs_the_lock_into_the_other_interpreter(home: Path) -> None:
    wheel(home / "wheels", "tiny", "1.0")
    environment = declare(home / "little", "# a comment\ntiny==1.0  # pinned\n", FOUND[0])
    notes = Notes()
    place = environments.create(environment, notes)
    assert environments.require(environment) == place.python
    code = "import sys, tiny; print('%d.%d' % sys.version_info[:2], tiny.version)"
    assert subprocess.run([place.python, "-I", "-c", code], capture_output=True, text=True).stdout.split() == [FOUND[0], "1.0"]
    assert FOUND[0] in notes.notes[0]
    assert notes.done == 1
    before = place.folder.stat().st_mtime_ns
    assert environments.create(environment) == place
    assert place.folder.stat().st_mtime_ns == before


def test_another_lock_is_another_folder(home: Path) -> None:
    first = environments.create(declare(home / "little", "# one\n", FOUND[0]))
    second = environments.create(declare(home / "little", "# two\n", FOUND[0]))
    assert first.folder != second.folder
    assert first.complete
    assert second.complete


def test_a_failed_making_says_why_and_goes_on_later(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "SLICE", 1)
    wheel(home / "wheels", "tiny", "1.0")
    environment = declare(home / "little", "tiny==1.0\nlate==2.0\n", FOUND[0])
    with pytest.raises(ScenariumError) as caught:
        environments.create(environment)
    assert caught.value.code == "SCN-6006"
    assert "late==2.0" in caught.value.title("en")
    with pytest.raises(ScenariumError, match="SCN-6004"):
        environments.require(environment)
    place = environments.places(environment)[0]
    assert (place.folder / ".installed").read_text() == "1"
    wheel(home / "wheels", "late", "2.0")
    notes = Notes()
    assert environments.create(environment, notes).complete
    assert notes.done == 2


def test_a_folder_that_is_not_as_the_lock_says_is_not_complete(home: Path) -> None:
    wheel(home / "wheels", "tiny", "1.0")
    environment = declare(home / "little", "tiny==1.0\n", FOUND[0])
    place = environments.create(environment)
    (place.folder / environments.COMPLETE).unlink()
    assert place.python.exists()
    next(place.folder.rglob("tiny-1.0.dist-info/METADATA")).write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 0.9\n")
    with pytest.raises(ScenariumError, match="not as the lock says"):
        environments.create(environment)
    assert environments.create(environment).complete


def test_two_processes_make_it_once(home: Path) -> None:
    environment = declare(home / "little", "# nothing\n", FOUND[0])
    code = """
    import sys
    from pathlib import Path
    from scenarium.core import environments
    from scenarium.core.types import Environment
    making = environments._make
    environments._make = lambda *args: (print("made"), making(*args))
    environments.create(Environment("little", (sys.argv[1],), Path(sys.argv[2])))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), FOUND[0], str(environment.folder)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert "".join(outputs).count("made") == 1
    assert [process.returncode for process in both] == [0, 0]
    assert environments.require(environment).exists()


def test_the_preferred_version_is_taken_and_the_next_where_it_is_missing(home: Path) -> None:
    place = environments.create(declare(home / "little", "# nothing\n", "3.99", OWN))
    assert place.version == OWN
    with pytest.raises(ScenariumError) as caught:
        environments.create(declare(home / "other", "# nothing\n", "3.99"))
    assert caught.value.code == "SCN-6005"
    assert "3.99" in str(caught.value)


def test_an_interpreter_is_found_where_pyenv_keeps_it_and_a_broken_shim_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = environments.find_python(FOUND[0])
    assert real
    shims = tmp_path / "shims"
    shims.mkdir()
    shim = shims / f"python{FOUND[0]}"
    shim.write_text("#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    version = tmp_path / "pyenv" / "versions" / f"{FOUND[0]}.1" / "bin"
    version.mkdir(parents=True)
    (version / "python").symlink_to(real)
    monkeypatch.setenv("PATH", str(shims))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert environments.find_python(FOUND[0]) == (version / "python" if FOUND[0] != OWN else Path(sys.executable))


def test_build_tools_come_first(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("a==1\n# note\nwheel==2\nb==3 # x\nsetuptools==4\n")
    assert environments.packages(lock) == ["wheel==2", "setuptools==4", "a==1", "b==3"]


# ── the process ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_side_is_valid_for_python_3_8_and_imports_the_standard_library_alone() -> None:
    tree = ast.parse(Path(environment_side.__file__).read_text(encoding="utf8"), feature_version=(3, 8))
    imported = {alias.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {(node.module or "").partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)


def test_ready_tells_what_runs_there(process: EnvironmentProcess) -> None:
    assert process.ready
    assert process.ready["python"].startswith(FOUND[0] + ".")
    assert process.ready["colour"] == "blue"
    assert process.ready["pid"] == process.popen.pid


def test_values_bytes_and_big_payloads(process: EnvironmentProcess) -> None:
    assert process.call("echo", value={"a": [1, None, "订单"]}) == {"a": [1, None, "订单"]}
    big = os.urandom(1 << 24)
    assert process.call("echo", body=big) == big
    text = "长" * 1_000_000
    assert process.call("echo", value=text) == text


def test_what_is_printed_there_never_disturbs_the_frames(process: EnvironmentProcess) -> None:
    assert process.call("noise") == {"word": "你好"}
    assert until(lambda: {"printed to stdout", "printed by a child"} <= set(process.lines))


def test_a_hundred_at_once_and_a_bound(made: Environment) -> None:
    process = EnvironmentProcess(made, {}, limit=50)
    process.wait_ready(30)
    try:
        with ThreadPoolExecutor(100) as pool:
            began = time.monotonic()
            answers = list(pool.map(lambda number: process.call("slow", seconds=0.3 + number / 1e6), range(100)))
            took = time.monotonic() - began
        assert answers == [0.3 + number / 1e6 for number in range(100)]
        # Fifty places, so two waves: one after the other would take 30 s.
        assert 0.6 <= took < 10
    finally:
        process.close()


def test_a_full_house_is_late_not_lost(made: Environment) -> None:
    process = EnvironmentProcess(made, {}, limit=1)
    process.wait_ready(30)
    try:
        waiting = threading.Thread(target=process.call, args=("slow",), kwargs={"seconds": 1.0})
        waiting.start()
        time.sleep(0.2)
        with pytest.raises(ScenariumError, match="SCN-6009"):
            process.call("echo", value=1, timeout=0.2)
        waiting.join()
        assert process.call("echo", value=2) == 2
    finally:
        process.close()


def test_blocking_methods_do_not_stop_the_others(process: EnvironmentProcess) -> None:
    with ThreadPoolExecutor(2) as pool:
        blocked = pool.submit(process.call, "blocking", seconds=1.0)
        began = time.monotonic()
        process.call("echo", value=1)
        assert time.monotonic() - began < 0.9
        assert blocked.result() == "done"


@pytest.mark.parametrize(
    ("method", "code", "words"),
    [
        ("fail", "SCN-6010", "ValueError: a plain exception"),
        ("fault", "SCN-6011", "from inside"),
        ("unsendable", "SCN-6010", "TypeError"),
        ("nothing", "SCN-6010", "no method 'nothing'"),
        ("__init__", "SCN-6010", "no method"),
    ],
)
def test_errors_cross_as_codes(process: EnvironmentProcess, method: str, code: str, words: str) -> None:
    with pytest.raises(ScenariumError) as caught:
        process.call(method)
    assert caught.value.code == code
    assert words in caught.value.title("en")
    assert process.call("echo", value="still here") == "still here"


def test_streams_and_leaving_early(process: EnvironmentProcess) -> None:
    assert list(process.stream("count", to=5)) == [0, 1, 2, 3, 4]
    assert list(process.stream("count", to=0)) == []
    parts = process.stream("count", to=1000, pause=0.05)
    assert [next(parts), next(parts)] == [0, 1]
    parts.close()  # type: ignore[attr-defined]
    assert until(lambda: process.call("was_closed") == 1000)


def test_killed_child_fails_those_who_wait_at_once(made: Environment) -> None:
    process = EnvironmentProcess(made, {})
    process.wait_ready(30)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(process.call, "slow", seconds=30) for _ in range(3)]
        time.sleep(0.3)
        began = time.monotonic()
        process.popen.send_signal(signal.SIGKILL)
        faults = [call.exception(timeout=10) for call in waiting]
        assert time.monotonic() - began < 3
    assert all(isinstance(fault, ScenariumError) and fault.code == "SCN-6007" for fault in faults)
    assert "-9" in str(faults[0])
    with pytest.raises(ScenariumError, match="SCN-6007"):
        process.call("echo", value=1)
    process.close()


def test_the_last_line_of_a_crash_is_told(made: Environment) -> None:
    process = EnvironmentProcess(made, {})
    process.wait_ready(30)
    with pytest.raises(ScenariumError, match="about to go"):
        process.call("crash")
    process.close()


@pytest.mark.parametrize(("settings", "code"), [({"refuse": 1}, "SCN-6011"), ({"die": 1}, "SCN-6010"), ({"dawdle": 1}, "SCN-6009")])
def test_a_start_that_fails(made: Environment, settings: dict[str, int], code: str) -> None:
    process = EnvironmentProcess(made, settings)
    with pytest.raises(ScenariumError) as caught:
        process.wait_ready(2 if "dawdle" in settings else 30)
    assert caught.value.code == code
    assert process.popen.poll() is not None


def test_the_child_ends_with_its_parent_even_while_it_hangs(made: Environment) -> None:
    code = """
    import sys, threading, time
    from pathlib import Path
    from scenarium.core.engines.environment_engine import EnvironmentProcess
    from scenarium.core.types import Environment
    process = EnvironmentProcess(Environment("little", (sys.argv[1],), Path(sys.argv[2])), {})
    print(process.wait_ready(30)["pid"], flush=True)
    threading.Thread(target=process.call, args=("hang",), kwargs={"seconds": 100}, daemon=True).start()
    time.sleep(100)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *made.pythons, str(made.folder)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    assert not gone(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert until(lambda: gone(child))


# ── the engine ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_engine_starts_a_dead_process_again(made: Environment) -> None:
    engine = EnvironmentEngine(made, {})
    try:
        first = engine.process.popen.pid
        engine.process.popen.kill()
        with pytest.raises(ScenariumError) as caught:
            engine.call("slow", seconds=5)
        assert caught.value.code in ("SCN-6007", "SCN-6008")
        assert caught.value.status == 503

        assert until(lambda: engine.process.popen.pid != first)
        assert engine.call("echo", value=1) == 1
    finally:
        engine.close()


def test_the_engine_replaces_a_process_that_hangs_and_keeps_one_that_is_slow(made: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EnvironmentEngine(made, {})
    try:
        first = engine.process
        with pytest.raises(ScenariumError, match="SCN-6009"):
            engine.call("slow", seconds=3, timeout=0.2)
        assert engine.process is first
        assert engine.call("echo", value=1) == 1
        monkeypatch.setattr(EnvironmentProcess.responds, "__defaults__", (0.5,))
        with pytest.raises(ScenariumError, match="SCN-6009"):
            engine.call("hang", seconds=60, timeout=0.2)
        assert until(lambda: engine.process is not first)
        assert engine.call("echo", value=2) == 2
        assert first.popen.poll() is not None
    finally:
        engine.close()


def test_a_process_that_stopped_reading_does_not_hold_its_callers(made: Environment) -> None:
    process = EnvironmentProcess(made, {})
    process.wait_ready(30)
    process.popen.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(ScenariumError) as caught:
        process.call("echo", body=bytes(1 << 22), timeout=1)
    assert caught.value.code in ("SCN-6007", "SCN-6009")
    assert time.monotonic() - began < 5
    process.close(grace=0)
    assert process.popen.poll() is not None


def test_the_hand_books_example_runs(made: Environment, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "environments.md").read_text(encoding="utf8")
    service = next(block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "def start" in block)
    (tmp_path / "env_main.py").write_text(service, encoding="utf8")
    (tmp_path / f"lock-{FOUND[0]}.txt").write_text((made.folder / f"lock-{FOUND[0]}.txt").read_text())
    process = EnvironmentProcess(Environment(made.name, made.pythons, tmp_path), {"digits": 1})
    try:
        assert process.wait_ready(30)["unit"] == "metre"
        assert process.call("predict", values=[1.0, 2.25]) == 1.6
    finally:
        process.close()
