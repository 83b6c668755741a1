"""``scenarium dev``: a single file is served, again after each save, and a mistake leaves the old one serving."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from scenarium.core.kit.dev import Session

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"


def tutorial_file() -> str:
    """The single file that the tutorial shows."""
    found = re.search(r"```python\n# file: opinion\.py\n(.*?)```", TUTORIAL.read_text(encoding="utf8"), re.S)
    assert found
    return found[1]


def vote() -> str:
    """What the file answers as the label: the one expression of it that these tests change."""
    found = re.search(r"Answer\(label=(.*)\) for ask in batch", tutorial_file())
    assert found
    return found[1]


class Dev:
    """A running ``scenarium dev``."""

    def __init__(self, file: Path, folder: Path, *options: str, stdin: int = subprocess.DEVNULL) -> None:
        self.file = file
        self.said = folder / "said.txt"
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "SCENARIUM_LANG": "en", "SCENARIUM_STORE": str(folder / "store")}
        command = [sys.executable, "-m", "scenarium.core.cli", "dev", str(file), "--port", "0", *options]
        with self.said.open("w") as log:
            self.process = subprocess.Popen(command, stdin=stdin, stdout=log, stderr=log, env=environment, cwd=folder)
        self.url = self.wait_for(r"(http://127\.0\.0\.1:\d+)", 60)

    def wait_for(self, pattern: str, seconds: float = 20) -> str:
        """What matches in what it said."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := re.search(pattern, self.said.read_text(encoding="utf8")):
                return found[1] if found.groups() else found[0]
            assert self.process.poll() is None, self.said.read_text()
            time.sleep(0.02)
        raise AssertionError(f"{pattern!r} not in:\n{self.said.read_text()}")

    def ask(self, text: str) -> tuple[int, dict[str, object]]:
        """Status and answer."""
        request = urllib.request.Request(f"{self.url}/scenarios/opinion/predict", json.dumps({"text": text}).encode())
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def ask_until(self, status: int, answer: dict[str, object], seconds: float = 20) -> None:
        """Ask until the answer is so: workers start beside the listening socket."""
        until = time.monotonic() + seconds
        got: object = None
        while time.monotonic() < until:
            got = code, body = self.ask("an awful film")
            if code == status and answer.items() <= body.items():
                return
            time.sleep(0.03)
        raise AssertionError(f"{got}\n{self.said.read_text()}")

    def save(self, old: str, new: str) -> None:
        """Change the file as an editor does: a new file in the old one's place."""
        text = self.file.read_text(encoding="utf8")
        assert old in text
        beside = self.file.with_name("opinion.py.new")
        beside.write_text(text.replace(old, new), encoding="utf8")
        beside.replace(self.file)

    def stop(self) -> int:
        """End it as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "opinion.py"
    path.write_text(tutorial_file(), encoding="utf8")
    return path


@pytest.fixture(params=[(), ("--in-process",)], ids=["workers", "in-process"])
def dev(file: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Dev]:
    running = Dev(file, tmp_path, *request.param)
    yield running
    assert running.stop() == 0, running.said.read_text()


def test_the_single_file_is_of_25_lines() -> None:
    assert len(tutorial_file().splitlines()) <= 25


@pytest.mark.slow
@pytest.mark.alone
def test_each_save_is_served_within_a_second(dev: Dev) -> None:
    dev.ask_until(200, {"label": "sad"})
    before, took = vote(), []
    for method in ("upper", "title", "swapcase"):
        after = f"{vote()}.{method}()"
        dev.save(before, after)
        began = time.monotonic()
        dev.ask_until(200, {"label": getattr("sad", method)()})
        took.append(time.monotonic() - began)
        before = after
    assert max(took) < 1, dev.said.read_text()


@pytest.mark.slow
def test_each_save_is_served_and_mistakes_leave_the_old_one(dev: Dev) -> None:
    dev.ask_until(200, {"label": "sad"})
    loud = f"{vote()}.upper()"
    dev.save(f"label={vote()})", f"label={loud})")
    dev.ask_until(200, {"label": "SAD"})

    dev.save(f"label={loud})", f"label={loud}")
    dev.wait_for(r"SyntaxError: .*\nnot served; the version before goes on")
    assert dev.ask("an awful film") == (200, {"label": "SAD"})

    dev.save(f"label={loud}", f'label={vote()}["x"])')
    dev.ask_until(500, {"code": "SCN-4003"})
    dev.wait_for(r'File ".*opinion\.py", line \d+, in predict_batch\n')
    assert "runtime.py" not in dev.said.read_text(), "Scenarium's own frames are not the author's"

    dev.save(f'label={vote()}["x"])', f"label={vote()})")
    dev.ask_until(200, {"label": "sad"})


@pytest.mark.slow
def test_change_of_the_training_trains_again(dev: Dev) -> None:
    dev.ask_until(200, {"label": "sad"})
    dev.save('"awful": "sad"', '"awful": "glad"')
    dev.ask_until(200, {"label": "glad"}, 40)
    assert dev.said.read_text().count("trained in") == 2


@pytest.mark.slow
def test_breakpoint_stops_in_process(file: Path, tmp_path: Path) -> None:
    text = file.read_text(encoding="utf8").replace("def predict_batch(model, batch): ", "def predict_batch(model, batch):\n    breakpoint()\n    ")
    file.write_text(text, encoding="utf8")
    # The quick training answers requests too, in a process of its own, and must not stop there.
    running = Dev(file, tmp_path, "--in-process", stdin=subprocess.PIPE)
    try:
        answers: list[object] = []
        thread = threading.Thread(target=lambda: answers.append(running.ask("an awful film")))
        thread.start()
        running.wait_for(r"\(Pdb\)")
        assert running.process.stdin
        running.process.stdin.write(b"p 'seen ' + batch[0].text\n")
        running.process.stdin.flush()
        running.wait_for("'seen an awful film'")
        running.process.stdin.write(b"c\n")
        running.process.stdin.flush()
        thread.join(20)
        assert answers == [(200, {"label": "sad"})]
    finally:
        assert running.process.stdin
        running.process.stdin.close()
        running.process.kill()
        running.process.wait()


def test_serving_hooks_decide_nothing_about_the_training(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    session = Session(str(file))
    before = session.training_key()
    text = file.read_text(encoding="utf8")
    file.write_text(text.replace(vote(), f"{vote()}.upper()"), encoding="utf8")
    assert session.training_key() == before
    file.write_text(text.replace("a great film", "a good film"), encoding="utf8")
    assert session.training_key() == before
    file.write_text(text.replace('("glad", "sad")', '("sad", "glad")'), encoding="utf8")
    assert session.training_key() != before


def test_source_that_cannot_be_read_is_named_with_its_line(file: Path) -> None:
    file.write_text("def f(:\n    pass\n", encoding="utf8")
    found = Session(str(file)).fault()
    assert found
    assert "opinion.py" in found
    assert "line 1" in found
