"""The operators' commands against a gateway that runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from scenarium.gateway.operator_cli import quantile


def test_quantiles_of_a_histogram():
    bounds = (0.1, 0.2, 0.4)
    assert quantile([0, 0, 0, 0], bounds, 0.5) is None
    assert quantile([10, 0, 0, 0], bounds, 0.5) == pytest.approx(0.05)
    assert quantile([10, 10, 0, 0], bounds, 0.75) == pytest.approx(0.15)
    assert quantile([0, 0, 0, 5], bounds, 0.5) == 0.4


def run(url, *arguments, **more):
    environment = {**os.environ, "SCENARIUM_LANG": "en", **more}
    return subprocess.run([sys.executable, "-m", "scenarium.core.cli", *arguments, "--url", url], capture_output=True, text=True, env=environment, timeout=60)


def test_status_logs_and_reload(lab):
    lab.publish("unit")
    lab.publish("other", "unit")
    gateway = lab.start({"unit": "unit", "broken": str(lab.folder / "missing.py")}, "scenarios.unit.serve.threads=1")
    gateway.ready("unit")
    os.kill(gateway.client.get("/scenarios/unit").json()["workers"][0]["pid"], signal.SIGKILL)
    gateway.wait_event("worker_died")
    gateway.ask("unit", "spoken", do="print")
    shown = run(gateway.url, "status")
    assert shown.returncode == 0, shown.stderr
    heads, unit = (re.split(r"  +", line) for line in shown.stdout.splitlines() if line.split()[0] in ("scenario", "unit"))
    cells = dict(zip(heads, unit, strict=True))
    figures = {name: float(cells.pop(name)) for name in ("MB", "req/s", "p50 ms", "p99 ms")}
    assert "SIGKILL" in cells.pop("last fault")
    assert cells == {"scenario": "unit", "state": "ready", "version": "1", "workers": "1/1", "device": "cpu", "threads": "1"} | dict.fromkeys(
        ("queue", "open", "errors"), "0"
    )
    assert figures.pop("req/s") >= 0
    assert all(value > 0 for value in figures.values())
    told = json.loads(run(gateway.url, "status", "--json").stdout)
    unit = next(each for each in told["scenarios"] if each["name"] == "unit")
    assert unit["outcomes"]["ok"] == 1
    assert unit["p50_s"] > 0
    assert unit["memory_mb"] > 1
    assert "to stderr: spoken" in run(gateway.url, "logs", "unit").stdout
    (lab.folder / "scenarios.toml").write_text('[scenarios.other]\nplugin = "unit"\n')
    assert run(gateway.url, "reload").stdout == "added: other\n"
    assert run(gateway.url, "reload").stdout == "Nothing changed.\n"
    (lab.folder / "scenarios.toml").write_text("[scenarios.\n")
    refused = run(gateway.url, "reload")
    assert refused.returncode == 1
    assert "SCN-1011" in refused.stderr
    assert "scenarios.toml" in refused.stderr


def test_nobody_answers():
    refused = run("http://127.0.0.1:9", "status")
    assert refused.returncode == 1
    assert "SCN-1010" in refused.stderr
    assert "scenarium serve" in refused.stderr
    assert "Traceback" not in refused.stderr
