"""What a check is, the list of all checks, and how they are run: each once, after those it builds on."""

from __future__ import annotations

import importlib
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from scenarium.core.errors import ScenariumError

if TYPE_CHECKING:
    from scenarium.core.kit.subject import Subject

Tier: TypeAlias = Literal["bronze", "silver", "gold"]
Phase: TypeAlias = Literal["plugin", "package", "data", "train", "serve"]
Status: TypeAlias = Literal["passed", "failed", "skipped", "blocked", "exempt"]

TIERS: tuple[Tier, ...] = ("bronze", "silver", "gold")
PHASES: tuple[Phase, ...] = ("plugin", "package", "data", "train", "serve")


class NotApplicable(Exception):
    """Raised by a check that has no meaning for this plugin; the reason in both languages."""

    def __init__(self, en: str, zh: str) -> None:
        super().__init__(en)
        self.en, self.zh = en, zh


@dataclass(frozen=True, slots=True)
class Check:
    """One property that a plugin must have."""

    name: str
    tier: Tier
    phase: Phase
    en: str
    """What must hold, one sentence."""
    zh: str
    after: tuple[str, ...]
    """Names of the checks without which this one would only repeat their failure."""
    run: Callable[[Subject], None]
    """Return, or raise ``ScenariumError`` (failed) or ``NotApplicable``."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one check found."""

    check: Check
    status: Status
    seconds: float = 0.0
    error: ScenariumError | None = None
    """Why it failed and what to do."""
    en: str = ""
    """Why it was skipped, blocked or exempted."""
    zh: str = ""


CHECKS: dict[str, Check] = {}
"""Every check by name, in the order in which they are shown."""


def check(tier: Tier, phase: Phase, zh: str, after: tuple[str, ...] = ()) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Add a function to the kit. Its name is the check's name, the first line of its docstring what must hold."""

    def register(run: Callable[[Subject], None]) -> Callable[[Subject], None]:
        name = run.__name__.replace("_", "-")
        CHECKS[name] = Check(name, tier, phase, (run.__doc__ or "").partition("\n")[0], zh, after, run)
        return run

    return register


def all_checks(tier: Tier = "gold") -> list[Check]:
    """The checks up to ``tier``."""
    for phase in PHASES:
        importlib.import_module(f"scenarium.core.kit.{phase}_checks")
    return [c for c in CHECKS.values() if TIERS.index(c.tier) <= TIERS.index(tier)]


class Runner:
    """Runs checks on one plugin and remembers their results."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.results: dict[str, Result] = {}

    def result(self, name: str) -> Result:
        """The result of one check, which is run, after those it builds on, if it has not been."""
        if name not in self.results:
            self.results[name] = self._run(CHECKS[name])
        return self.results[name]

    def _run(self, check: Check) -> Result:
        if stated := self.subject.declaration.exempt.get(check.name):
            return Result(check, "exempt", en=stated, zh=stated)
        for name in check.after:
            if self.result(name).status in ("failed", "blocked"):
                return Result(check, "blocked", en=f"needs {name}", zh=f"以 {name} 为前提")
        began = time.monotonic()
        try:
            check.run(self.subject)
        except NotApplicable as reason:
            return Result(check, "skipped", time.monotonic() - began, en=reason.en, zh=reason.zh)
        except ScenariumError as error:
            return Result(check, "failed", time.monotonic() - began, _with_author(error, self.subject.home))
        except Exception as fault:
            return Result(check, "failed", time.monotonic() - began, raised(fault, self.subject.home))
        return Result(check, "passed", time.monotonic() - began)


def raised(fault: BaseException, home: Path | None) -> ScenariumError:
    """An unexpected exception as an error that names the author's own line (the last frame inside ``home``)."""
    frame = author_frame(fault, home)
    error = ScenariumError("SCN-7001", file=frame.filename if frame else None, line=frame.lineno if frame else None, reason=f"{type(fault).__name__}: {fault}")
    error.__cause__ = fault
    return error


def author_frame(fault: BaseException, home: Path | None) -> traceback.FrameSummary | None:
    """The innermost frame of the author's own files, else the innermost of all."""
    frames = traceback.extract_tb(fault.__traceback__)
    own = [frame for frame in frames if home and Path(frame.filename).is_relative_to(home)]
    return own[-1] if own else frames[-1] if frames else None


def _with_author(error: ScenariumError, home: Path | None) -> ScenariumError:
    """A fault of the plugin's (SCN-4003) shown as the exception that caused it."""
    return raised(error.__cause__, home) if error.code == "SCN-4003" and error.__cause__ else error
