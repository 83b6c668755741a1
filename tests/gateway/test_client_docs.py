"""The Python of docs/clients.md, run as it stands against a real gateway whose scenarios have the names that stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf8"), re.S)
SCENARIOS = {"fraud_text": "unit", "text_generation": "talks", "image_classification": "picture"}
"""What the page calls a scenario, and which of the tests' plugins stands for it."""


@pytest.fixture(scope="module")
def folder(shared_lab):
    """A folder with what the page's code reads, and a gateway that it finds by the environment."""
    from .conftest import PLUGINS

    for name, plugin in SCENARIOS.items():
        shared_lab.publish(name, str(PLUGINS / f"{plugin}.py"))
    server = shared_lab.start(dict(SCENARIOS))
    server.ready(*SCENARIOS)
    return shared_lab.folder, server


def test_it_shows_all():
    assert len(BLOCKS) == 6
    assert all(word in "".join(BLOCKS) for word in ("predict_batch", "stream(", "submit(", "live(", "into=Answer", "Path("))


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_it_runs(folder, number):
    where, server = folder
    (where / "photo.jpg").write_bytes(b"\xff\xd8\xff" + bytes(1000))
    (where / "messages.txt").write_text("开会\n中奖\n", encoding="utf8")
    code = BLOCKS[number].replace("http://localhost:8080", server.url).replace("top_k", "top")  # as the stand-in calls it
    if "fraud_text_types" in code:
        about = [sys.executable, "-m", "scenarium.core.cli", "snippet", "fraud_text", "--lang", "types"]
        (where / "fraud_text_types.py").write_bytes(subprocess.run(about, env=_environment(where, server), capture_output=True, check=True).stdout)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=where, env=_environment(where, server), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    assert done.stdout.strip()


def _environment(where, server):
    return {**os.environ, "SCENARIUM_URL": server.url, "SCENARIUM_STORE": str(where / "store"), "PYTHONPATH": str(where)}
