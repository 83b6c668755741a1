"""``scenarium check``: run the conformance kit on one plugin and print a table or JSON."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenarium.core.errors import language
from scenarium.core.kit.checks import Check, Result, Runner, Tier, all_checks
from scenarium.core.kit.subject import Subject

MARKS = {"passed": ("✓", "green"), "failed": ("✗", "red"), "skipped": ("–", "dim"), "blocked": ("…", "yellow"), "exempt": ("○", "cyan")}


@dataclass(frozen=True)
class Report:
    """The results of one plugin's checks."""

    name: str
    tier: Tier
    results: list[Result]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not any(result.status in ("failed", "blocked") for result in self.results)

    def names(self, status: str) -> list[str]:
        """Names of the checks that ended so."""
        return [result.check.name for result in self.results if result.status == status]

    def json(self) -> dict[str, Any]:
        """The report as JSON values, texts in both languages."""
        return {"scenario": self.name, "tier": self.tier, "passed": self.passed, "checks": [_json(result) for result in self.results]}


def run_checks(target: str, *, tier: Tier | None = None, sets: Sequence[str] = (), seen: Callable[[Result], None] = lambda result: None) -> Report:
    """Check the plugin ``target`` (name, folder or single file) up to ``tier`` (None: the one that it declares).

    Raises:
        ScenariumError: those of ``Subject.open``.
    """
    with tempfile.TemporaryDirectory(prefix="scenarium-check-") as work:
        subject = Subject.open(target, Path(work), sets)
        bar = tier or subject.declaration.tier
        runner = Runner(subject)
        results = []
        for check in all_checks(bar):
            results.append(runner.result(check.name))
            seen(results[-1])
    return Report(subject.name, bar, results)


def _json(result: Result) -> dict[str, Any]:
    error = result.error
    found: dict[str, Any] = {
        "name": result.check.name,
        "tier": result.check.tier,
        "phase": result.check.phase,
        "status": result.status,
        "seconds": round(result.seconds, 3),
        "what": {"en": result.check.en, "zh": result.check.zh},
    }
    if error:
        found["error"] = {lang: error.problem(lang) for lang in ("en", "zh")}
    elif result.en:
        found["reason"] = {"en": result.en, "zh": result.zh}
    return found


def print_result(result: Result, trace: bool = False) -> None:
    """One line of the table, and for a failure the reason and what to do."""
    from rich.console import Console
    from rich.text import Text

    zh = language() == "zh"
    mark, style = MARKS[result.status]
    line = Text.assemble((f"{mark} ", style), (f"{result.check.name:<20} ", "bold"), (result.check.zh if zh else result.check.en))
    if result.status in ("skipped", "blocked", "exempt"):
        line.append(f" ({result.zh if zh else result.en})", "dim")
    if result.seconds >= 0.1:
        line.append(f"  {result.seconds:.1f} s", "dim")
    console = Console(highlight=False)
    console.print(line, soft_wrap=True)
    if result.error:
        console.print(Text("    " + str(result.error).replace("\n", "\n    "), style), soft_wrap=True)
        if trace and (cause := result.error.__cause__):
            console.print(Text("".join(traceback.format_exception(cause))), soft_wrap=True)


def print_checks(checks: Sequence[Check]) -> None:
    """The list of all checks, grouped by tier."""
    from rich.console import Console
    from rich.table import Table

    table = Table("check", "tier", "phase", "检查" if language() == "zh" else "what must hold")
    for check in checks:
        table.add_row(check.name, check.tier, check.phase, check.zh if language() == "zh" else check.en)
    Console().print(table)
