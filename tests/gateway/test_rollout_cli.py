"""``scenarium rollout`` as people use it: on a store, beside a gateway that runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture
def run(lab):
    """Runs a command on the lab's store; the plugin ``unit`` is installed for it."""
    site = lab.folder / "site"
    info = site / "scenarium_unit-0.1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(PLUGINS / "unit.py", site)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scenarium-unit\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[scenarium.scenarios]\nunit = unit\n[scenarium.hook_api]\nunit = 1.0\n")
    (lab.folder / "scenarios.toml").write_text("")
    home = {"XDG_CACHE_HOME": str(lab.folder / "cache"), "SCENARIUM_STORE": lab.store.root, "SCENARIUM_URL": "http://127.0.0.1:9"}

    def call(*arguments, **more):
        environment = {**os.environ, "PYTHONPATH": str(site), "SCENARIUM_LANG": "en", **home, **more}
        command = [sys.executable, "-m", "scenarium.core.cli", "--config", str(lab.folder / "scenarios.toml"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, cwd=lab.folder)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


def test_start_status_and_stop(lab, run):
    for answer in ("one", "two"):
        lab.publish("unit", settings={"model.answer": answer}, alias=answer == "one")
    assert run("rollout", "status").stdout == "There was no rollout.\n"
    begun = run("rollout", "start", "unit", "latest", "--canary", "50%", "--max-error-rate", "0.1", "--json")
    assert begun.returncode == 0, begun.stderr
    told = json.loads(begun.stdout)
    assert (told["version"], told["production"], told["canary"], told["limits"]["max_error_rate"]) == (2, 1, 0.5, 0.1)
    gateway = lab.start({"unit": "unit"})
    lab.until(lambda: (found := gateway.client.get("/admin/status").json()["scenarios"][0]["rollout"]) and found["ready"])
    for _ in range(30):
        gateway.ask("unit")
    shown = json.loads(run("rollout", "status", "unit", "--json", SCENARIUM_URL=gateway.url).stdout)["rollouts"][0]
    assert (shown["state"], shown["gateway"]["version"], shown["gateway"]["state"]) == ("running", 2, "ready")
    assert shown["gateway"]["canary"]["requests"] + shown["gateway"]["production"]["requests"] == 30
    line = run("rollout", "status", SCENARIUM_URL=gateway.url).stdout.splitlines()[1]
    assert line.split()[:8] == ["unit", "1", "->", "2", "running", "canary", "50%", str(shown["gateway"]["canary"]["requests"])]
    alone = run("rollout", "status", "unit")
    assert "canary 50%" in alone.stdout
    assert "without a gateway's figures" in alone.stderr
    stopped = run("rollout", "stop", "unit", SCENARIUM_LANG="zh")
    assert stopped.stdout == "unit：版本 2 的灰度发布已停止\n"
    assert "stopped by hand" in run("rollout", "status", "unit").stdout
    assert "SCN-5015" in run("rollout", "stop", "unit").stderr


def test_promote_ends_it_and_a_version_that_cannot_be_compared_is_not_promoted(lab, run):
    for answer in ("one", "two"):
        lab.publish("unit", settings={"model.answer": answer}, alias=answer == "one")
    assert run("rollout", "start", "unit", "2", "--shadow", "--canary", "5%").returncode == 0
    refused = run("rollout", "stop", "unit", "--promote")  # its data cannot be had again
    assert refused.returncode == 1
    assert "SCN-" in refused.stderr
    assert json.loads(run("rollout", "status", "--json").stdout)["rollouts"][0]["state"] == "running"
    assert run("promote", "unit", "2", "--force", "--reason", "tried").returncode == 0
    found = json.loads(run("rollout", "status", "unit", "--json").stdout)["rollouts"][0]
    assert (found["state"], found["cause"]) == ("promoted", "promoted")
    assert "candidate: 2 -> -  promoted" in run("versions", "unit", "--history").stdout


def test_what_is_not_understood_is_told(lab, run):
    lab.publish("unit")
    for arguments, words in [
        (("start", "unit", "1"), "--canary"),
        (("start", "unit", "1", "--canary", "5"), "5% or 0.05"),
        (("start", "unit", "1", "--canary", "much"), "5% or 0.05"),
        (("start", "unit", "1", "--canary", "5%"), "SCN-5014"),
        (("start", "unit", "7", "--canary", "5%"), "SCN-5001"),
        (("start", "unti", "1", "--canary", "5%"), "SCN-1001"),
        (("status", "unti"), "SCN-1001"),
        (("stop", "unit"), "SCN-5015"),
    ]:
        done = run("rollout", *arguments)
        assert done.returncode in (1, 2), arguments
        assert words in done.stderr, (arguments, done.stderr)
