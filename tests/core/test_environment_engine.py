"""Environments are asked over pipes: with real processes in another interpreter."""

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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scenarium.core import environments
from scenarium.core.engines import environment_side
from scenarium.core.engines.environment_engine import EnvironmentEngine, EnvironmentProcess
from scenarium.core.errors import ScenariumError
from scenarium.core.types import Environment
from tests.core.little_environment import FOUND, declare


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
