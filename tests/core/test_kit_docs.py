"""The pages for authors: the hook reference agrees with the specification, and the tutorial's code runs."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from scenarium.core import hookspecs
from scenarium.core.relay import HOOKS

ROOT = Path(__file__).parents[2]


def test_hook_reference_shows_every_hook_with_its_signature() -> None:
    page = (ROOT / "docs" / "hooks.md").read_text(encoding="utf8")
    sections = dict(re.findall(r"^### (\w+)\n\n```python\n(.*?)\n```", page, re.M | re.S))
    tree = ast.parse(Path(hookspecs.__file__).read_text(encoding="utf8"))
    specs = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in HOOKS}
    assert list(sections) == list(HOOKS)
    for name, node in specs.items():
        assert node.returns
        assert sections[name] == f"def {name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"


def blocks() -> Iterator[tuple[str, str]]:
    """Language and text of each code block of the tutorial, in order."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "docs" / "tutorial.md").read_text(encoding="utf8"), re.M | re.S)


class Reader:
    """Does what a reader of the tutorial does, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(folder / "site"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_DATA_HOME": str(folder / "data"),
            "SCENARIUM_STORE": str(folder / "store"),
            "SCENARIUM_LANG": "en",
            "MLFLOW_TRACKING_URI": "",
        }
        self.server: subprocess.Popen[bytes] | None = None
        self.answer: dict[str, object] = {}

    def run(self, line: str) -> None:
        """One line of a shell block."""
        if line.startswith(("python -m venv", 'pip install "')):
            return  # the environment that runs this test
        if line.startswith("pip install -e "):
            self.shell(f"{sys.executable} -m pip install -q --no-deps --no-build-isolation --target site {line.removeprefix('pip install -e ')}")
        elif line.startswith(("scenarium dev", "scenarium serve")):
            self.stop()
            self.server = subprocess.Popen(
                [*line.split(), "--port", str(self.port)], cwd=self.folder, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        elif line.startswith("curl"):
            self.answer = self.curl(line)
        else:
            self.shell(line)

    def shell(self, line: str) -> None:
        """Run to the end, which must be good."""
        done = subprocess.run(line, shell=True, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"

    def curl(self, line: str) -> dict[str, object]:
        """What the server answers, once it does."""
        found = re.fullmatch(r"curl localhost:8080(\S+) -d '(.*)'", line)
        assert found, line
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{found[1]}", found[2].encode())
        until = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(request, timeout=20) as response:
                    return dict(json.load(response))
            except urllib.error.HTTPError as error:
                with error:
                    if error.code != 503 or time.monotonic() > until:
                        return dict(json.load(error))
            except OSError:
                assert time.monotonic() < until, "no server"
            time.sleep(0.1)

    def stop(self) -> None:
        """End the server."""
        if self.server:
            self.server.send_signal(signal.SIGINT)
            assert self.server.wait(30) == 0
            self.server = None


@pytest.mark.slow
def test_tutorial_runs_as_written(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    began, answers = time.monotonic(), 0
    try:
        for language, text in blocks():
            if language == "json":
                expected = json.loads(text)
                assert expected.items() <= reader.answer.items(), reader.answer
                answers += 1
            elif text.startswith("# file: "):
                first, _, rest = text.partition("\n")
                (tmp_path / first.removeprefix("# file: ")).write_text(rest, encoding="utf8")
            else:
                for line in text.splitlines():
                    reader.run(line)
    finally:
        reader.stop()
    assert answers == 3
    assert time.monotonic() - began < 600, "the tutorial promises ten minutes"
