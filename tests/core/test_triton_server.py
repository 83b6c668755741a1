"""The environment of a Triton from a wheel and its model configurations, where they are missing or wrong. A real server: tests/gateway/test_triton_start.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scenarium.core.errors import ScenariumError
from scenarium.core.triton import entries, server


def test_another_machine_than_the_wheels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.platform, "machine", lambda: "riscv64")
    for call in (server.install, server.installed):
        with pytest.raises(ScenariumError, match="x86-64") as refused:
            call(tmp_path)
        assert refused.value.code == "SCN-6041"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(server.impossible() is not None, reason="no Triton on this machine")
def test_a_step_that_fails_and_an_environment_that_was_not_made_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ScenariumError, match="-m venv") as refused:
        server.install(tmp_path / "file" / "environment")
    assert refused.value.code == "SCN-6042"
    (tmp_path / "half" / "lib").mkdir(parents=True)
    with pytest.raises(ScenariumError, match="half") as refused:
        server.installed(tmp_path / "half")
    assert refused.value.code == "SCN-6043"


def test_the_last_error_of_a_server_that_ended_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("I1 starting\nE1 failed to load\nI1 stopping\n")
    found = server.ended(log)
    assert found.code == "SCN-6044"
    assert "E1 failed to load" in found.title()
    log.write_text("E1 failed to load\nerror: creating server: no such folder\nE2 no driver\n")
    assert "no such folder" in server.ended(log).title()
    log.write_text("")
    assert "-" in server.ended(log).title()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "No such file"),
        ("platform: ", "config.pbtxt"),
        ('platform: "onnxruntime_onnx"', "there is no model"),
        ('platform: "onnxruntime_onnx" default_model_filename: "broken.onnx"', "does not tell them"),
    ],
)
def test_a_configuration_that_cannot_be_used_says_why(tmp_path: Path, text: str | None, told: str) -> None:
    pytest.importorskip("tritonclient.grpc")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "broken.onnx").write_bytes(b"no model")
    if text:
        (tmp_path / "config.pbtxt").write_text(text)
    with pytest.raises(ScenariumError, match=told) as refused:
        entries.read(tmp_path, Path(sys.prefix))
    assert refused.value.code == "SCN-6045"
