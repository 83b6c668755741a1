"""The fuzzer's targets: what was found once stays corrected, and a short run of the fuzzer itself finds nothing more."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.fuzz.__main__ import CORPUS, NAMES, fuzz
from tests.fuzz.targets import TARGETS, garbled

FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())


def test_the_targets_are_those_of_the_runner() -> None:
    assert set(TARGETS) == set(NAMES) == {path.parent.name for path in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once(file: Path) -> None:
    began = time.process_time()
    TARGETS[file.parent.name](file.read_bytes())
    assert time.process_time() - began < 2


def test_what_a_good_worker_writes_is_taken() -> None:
    for name in ("good", "fault"):
        assert not garbled((CORPUS / "worker_frames" / name).read_bytes())
    assert garbled((CORPUS / "worker_frames" / "regression-zero").read_bytes())


def test_a_target_sees_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    # Else a target that swallows everything would go unnoticed: each defect that was corrected is put back for a moment.
    from scenarium.gateway.elements import Elements

    monkeypatch.setattr(Elements, "feed", lambda self, data: self._buffer.extend(data) or [])
    with pytest.raises(AssertionError):
        TARGETS["elements"]((CORPUS / "elements" / "regression-blanks").read_bytes())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="atheris has wheels for Linux alone")
@pytest.mark.parametrize("name", NAMES)
def test_a_short_run_finds_nothing(name: str, tmp_path: Path) -> None:
    status = fuzz(name, 3, tmp_path)
    assert status == 0, [path.read_bytes()[:2000] for path in (tmp_path / "found").iterdir()]
