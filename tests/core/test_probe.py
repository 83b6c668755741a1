"""Twenty-five plugins, six of them at fault: each is named with reason and remedy, and the others go on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scenarium.core import probe
from scenarium.core.handle import Handle
from scenarium.core.registry import Plugin, installed_plugins, open_registry

GOOD = [f"good_{number:02}" for number in range(19)]
HANG = "import time\ntime.sleep(600)\n"


@pytest.fixture
def crowd(site: Path, distribution: Callable[..., None], pebbles_source: str) -> dict[str, Plugin]:
    """25 distributions: 19 good ones beside one of each fault (two of them claim one name)."""
    for path in [*site.glob("scenarium_pebbles*")]:
        subprocess.run(["rm", "-r", str(path)], check=True)
    for name in GOOD:
        distribution(site, name, pebbles_source)
    distribution(site, "syntax", "x = (\n")
    distribution(site, "leaver", "import sys\nsys.exit('goodbye')\n")
    distribution(site, "hanger", HANG)
    distribution(site, "twin_a", pebbles_source, plugin="twin")
    distribution(site, "twin_b", pebbles_source, plugin="twin")
    distribution(site, "future", pebbles_source, api="1.7")
    ours = {name: plugin for name, plugin in installed_plugins().items() if plugin.target.partition(":")[0] in {p.name for p in site.iterdir()}}
    assert len(ours) == 24  # 25 distributions, two of which claim one name
    return ours


@pytest.mark.slow
def test_each_broken_plugin_is_named_and_the_others_serve(crowd: dict[str, Plugin]) -> None:
    assert {health.state for health in map(probe.known, crowd.values()) if health.error is None} == {"unknown"}
    began = time.monotonic()
    found = probe.probe(list(crowd.values()), limit_s=15)
    assert time.monotonic() - began < 120
    assert {name for name, health in found.items() if health.state == "ok"} == set(GOOD)
    expected = {
        "syntax": ("SyntaxError", "Correct that line"),
        "leaver": ("sys.exit('goodbye')", "Remove the call"),
        "hanger": ("did not end within 15 s", "Remove what waits"),
        "twin": ("scenarium-twin-a and scenarium-twin-b", "pip uninstall scenarium-twin-b"),
        "future": ("hook API 1.7", "pip install -U scenarium"),
    }
    for name, (reason, remedy) in expected.items():
        error = found[name].error
        assert error is not None
        assert reason in error.title(), name
        assert remedy in error.hint(), name
        assert error.title("zh") != error.title("en"), name
    # What was found is remembered: the second time nothing is started.
    began = time.monotonic()
    again = {name: probe.known(plugin) for name, plugin in crowd.items()}
    assert time.monotonic() - began < 2
    assert {name: str(health.error) for name, health in again.items()} == {name: str(health.error) for name, health in found.items()}
    # And the others work, in one process with the broken ones.
    registry = open_registry()
    for name in GOOD[:3]:
        handle = Handle(registry.scenario(name))
        handle.train()
        assert handle.predict(grams=9)["heap"] == "heavy"


def one(site: Path, distribution: Callable[..., None], source: str, **kwargs: Any) -> Plugin:
    distribution(site, "one", source, **kwargs)
    return installed_plugins()["one"]


def test_a_changed_file_is_probed_anew(site: Path, distribution: Callable[..., None], pebbles_source: str) -> None:
    plugin = one(site, distribution, "1 / 0\n")
    assert probe.probe([plugin])["one"].state == "broken"
    assert probe.known(plugin).state == "broken"
    plugin = one(site, distribution, pebbles_source)
    assert probe.known(plugin).state == "unknown"
    assert probe.probe([plugin])["one"].state == "ok"
    (site / "scenarium_one" / "extra.py").write_text("", encoding="utf8")
    assert probe.known(plugin).state == "unknown"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os\nos._exit(4)\n", "exit code 4"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n", "signal 11"),
        ("from scenarium.core import hookimpl\n@hookimpl\ndef fields(): return {}\n", "does not implement schema, sample, metric, score"),
        ("print('noise on stdout')\nraise RuntimeError('out of order')\n", "out of order"),
    ],
)
def test_what_a_probe_survives(site: Path, distribution: Callable[..., None], source: str, reason: str) -> None:
    health = probe.probe([one(site, distribution, source)])["one"]
    assert health.state == "broken"
    assert health.error is not None
    assert reason in health.error.title()


def test_a_missing_module_and_children_that_hang(site: Path, distribution: Callable[..., None], tmp_path: Path) -> None:
    assert "scenarium_nowhere" in str(probe.probe([one(site, distribution, None, module="scenarium_nowhere")])["one"].error)
    pid = tmp_path / "pid"
    sleeper = "[sys.executable, '-c', 'import time; time.sleep(600)']"
    source = f"import subprocess, sys\nchild = subprocess.Popen({sleeper})\nopen({str(pid)!r}, 'w').write(str(child.pid))\nchild.wait()\n"
    health = probe.probe([one(site, distribution, source)], limit_s=4)["one"]
    assert "did not end within 4 s" in str(health.error)
    for _ in range(50):
        state = Path(f"/proc/{pid.read_text()}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("what the plugin had started is still running")


def test_an_unwritable_cache_only_costs_time(site: Path, distribution: Callable[..., None], pebbles_source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = one(site, distribution, pebbles_source)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert probe.probe([plugin])["one"].state == "ok"
    assert probe.known(plugin).state == "unknown"


def test_knowing_imports_no_plugin(site: Path) -> None:
    probe.known(installed_plugins()["pebbles"])
    assert "scenarium_pebbles" not in sys.modules
