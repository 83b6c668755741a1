"""The conformance kit: the healthy plugin passes every check, and each broken twin fails the check that bears its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenarium.core.kit import ScenarioConformance
from scenarium.core.kit.checks import CHECKS, Runner, all_checks
from scenarium.core.kit.subject import Subject

FOLDER = Path(__file__).parent / "broken_plugins"
BROKEN = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("healthy"))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One of the twins writes into the current folder.
    monkeypatch.chdir(tmp_path)


class TestHealthy(ScenarioConformance):
    """The kit's own pytest class on the healthy twin."""

    name = str(FOLDER / "healthy.py")
    tier = "gold"


@pytest.mark.parametrize("fault", BROKEN)
def test_planted_fault_is_caught_by_the_check_of_its_name(fault: str, tmp_path: Path) -> None:
    runner = Runner(Subject.open(str(FOLDER / f"{fault}.py"), tmp_path))
    all_checks()
    result = runner.result(fault.replace("_", "-"))
    assert result.status == "failed", result
    assert {name for name, other in runner.results.items() if other.status in ("failed", "blocked")} == {result.check.name}
    assert result.error
    assert result.error.title("en") != result.error.title("zh")
    assert result.error.hint("en")


def test_there_are_at_least_twenty_planted_faults() -> None:
    all_checks()
    assert len(BROKEN) >= 20
    assert {name.replace("_", "-") for name in BROKEN} <= set(CHECKS)
