"""The conformance kit as a pytest class: a plugin's own test is a subclass with one attribute, one pytest item a check.

>>> class TestFraudText(ScenarioConformance):
...     name = "fraud_text"
"""

from __future__ import annotations

from typing import ClassVar

import pytest

from scenarium.core.kit.checks import Runner, Tier, all_checks
from scenarium.core.kit.subject import Subject


class ScenarioConformance:
    """Runs every check of the plugin's tier. What is dear is made once for the class."""

    name: ClassVar[str]
    """The scenario, or the path of a plugin's folder or single file."""
    tier: ClassVar[Tier | None] = None
    """The bar; None: the one that the plugin's pyproject.toml declares."""
    sets: ClassVar[tuple[str, ...]] = ()
    """Settings for the small training beside those of ``[tool.scenarium] check``."""

    @pytest.fixture(scope="class")
    @classmethod
    def runner(cls, tmp_path_factory: pytest.TempPathFactory) -> Runner:
        """The runner of this plugin's checks."""
        return Runner(Subject.open(cls.name, tmp_path_factory.mktemp("kit"), cls.sets))

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One item a check. All tiers are collected; those above the plugin's are skipped."""
        if "check_name" in metafunc.fixturenames:
            metafunc.parametrize("check_name", [check.name for check in all_checks()])

    def test_conformance(self, runner: Runner, check_name: str) -> None:
        """The plugin has this property."""
        allowed = {check.name for check in all_checks(self.tier or runner.subject.declaration.tier)}
        if check_name not in allowed:
            pytest.skip(f"above the tier {self.tier or runner.subject.declaration.tier}")
        result = runner.result(check_name)
        if result.status == "failed":
            pytest.fail(str(result.error), pytrace=False)
        if result.status != "passed":
            pytest.skip(f"{result.status}: {result.en}")
