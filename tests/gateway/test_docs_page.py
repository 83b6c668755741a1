"""The Swagger page in a real browser: it shows each scenario, and asks no other host."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def browse(folder: Path, url: str, *options: str) -> str:
    """Open a page as a user would, with no other host reachable; the document after its scripts have run."""
    assert CHROMIUM, "needs Chromium: make setup-test installs it"
    command = [
        *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}"),
        *("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--virtual-time-budget=20000", "--window-size=1200,1600"),
        *(*options, url),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=os.environ | {"HOME": str(folder)}).stdout


def test_the_page_shows_each_scenario_and_its_sample(lab):
    for name in ("unit", "picture"):
        lab.publish(name)
    gateway = lab.start({"unit": "unit", "picture": "picture"})
    gateway.ready("unit", "picture")
    document = browse(lab.folder, f"{gateway.url}/docs", "--dump-dom")
    assert "Failed to load" not in document
    assert "Unable to render" not in document
    shown = set(re.findall(r'data-path="([^"]+)"', document))
    assert {"/scenarios/unit/predict", "/scenarios/unit/stream", "/scenarios/unit/predict/batch", "/scenarios/picture/predict", "/scenarios"} <= shown
    # One operation opened by its link shows the sample in the editor, and the other forms of a body of bytes.
    opened = browse(lab.folder, f"{gateway.url}/docs#/unit/predict_unit", "--dump-dom")
    assert "你好" in opened
    picture = lab.folder / "page.png"
    browse(lab.folder, f"{gateway.url}/docs#/picture/predict_picture", f"--screenshot={picture}")
    assert picture.stat().st_size > 20_000
    if keep := os.environ.get("SCENARIUM_SCREENSHOT"):
        shutil.copy(picture, keep)
