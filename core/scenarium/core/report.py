"""The self-contained HTML report of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from scenarium.core.manifest import Manifest
from scenarium.core.types import Figure


def write(path: Path, manifest: Manifest, curves: Mapping[str, Sequence[tuple[int, float]]], figures: Sequence[Figure]) -> None:
    """Write the report to ``path``."""
    parts = "".join(f"<h2>{figure.title}</h2>{figure.html}" for figure in figures)
    path.write_text(f"<!doctype html><meta charset=utf-8><title>{manifest.scenario}</title>{parts}", encoding="utf8")
