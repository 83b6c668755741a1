"""Experiment tracking. The base class records nothing; MLflow is used where it is installed, and never fails a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Tracker:
    """Receives the settings, figures and files of one run."""

    @classmethod
    @contextmanager
    def open(cls, name: str, config: Any, data_manifest: Mapping[str, Any]) -> Iterator[Tracker]:
        """The tracker of one run."""
        yield cls()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record figures of one step."""

    def finish(self, manifest: Any, folder: Path) -> None:
        """Record the committed version."""
