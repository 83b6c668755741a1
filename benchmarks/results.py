"""What every benchmark returns, prints and writes: ``benchmarks/results/<name>.json``.

A figure is a dict ``{"figure", "value", "unit", "better" ("higher" or "lower"), "must", "aim"}``; ``must`` and ``aim`` are None
where a figure is shown for comparison only. In the file each entry also names the machine, the versions and the date.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

Figure: TypeAlias = dict[str, Any]

FOLDER = Path(__file__).parent / "results"


def figure(name: str, value: float, unit: str, better: str, must: float | None = None, aim: float | None = None) -> Figure:
    """One figure; ``value`` is rounded to four significant digits."""
    return {"figure": name, "value": float(f"{value:.4g}"), "unit": unit, "better": better, "must": must, "aim": aim}


def verdict(entry: Figure) -> str:
    """``aim``, ``must`` or ``MISSED``: the strictest mark that the value reaches; empty where there is none."""

    def reached(mark: float) -> bool:
        return bool(entry["value"] >= mark if entry["better"] == "higher" else entry["value"] <= mark)

    marks = [name for name in ("aim", "must") if entry[name] is not None]
    return next((name for name in marks if reached(entry[name])), "MISSED" if marks else "")


def show(figures: Sequence[Figure]) -> None:
    """Print the figures as a table."""
    rows = [("figure", "value", "unit", "must", "aim", "reached")]
    rows += [(f["figure"], f"{f['value']:g}", f["unit"], *("" if f[k] is None else f"{f[k]:g}" for k in ("must", "aim")), verdict(f)) for f in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def write(name: str, figures: Sequence[Figure], packages: Iterable[str] = (), others: Mapping[str, str] | None = None) -> Path:
    """Merge ``figures`` into the list ``results/<name>.json`` (a figure of the same name is replaced), each with machine, versions and date.

    ``packages`` are those of this environment, ``others`` the versions of what ran in another.
    """
    path = FOLDER / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf8")) if path.is_file() else []
    fresh = {entry["figure"] for entry in figures}
    run = {
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {p: v for p in packages if (v := _version(p))} | dict(others or {}),
        "date": now(),
    }
    found = [entry for entry in kept if entry["figure"] not in fresh] + [entry | run for entry in figures]
    path.parent.mkdir(exist_ok=True)
    _save(path, found)
    return path


def drop_older(name: str, start: str) -> None:
    """Drop the figures of ``results/<name>.json`` that were made before ``start``: those of benchmarks that are no longer, or call them otherwise."""
    path = FOLDER / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf8"))
    _save(path, [entry for entry in found if entry["date"] >= start])


def now() -> str:
    """The date of a figure; dates sort as they follow each other."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _ticks() -> tuple[int, int]:
    """Processor time so far that a host took from this virtual machine, and all of it; zeros where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return 0, 0
    counts = [int(each) for each in stat.read_text().split("\n", 1)[0].split()[1:9]]
    return counts[7], sum(counts)


_BEGAN = _ticks()


def machine() -> dict[str, Any]:
    """The processor's name, cores of this process, the operating system, and what share of the processors' time since this module was imported
    the machine's host gave to others: such pauses are in every latency."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    stolen, all_ = (after - before for after, before in zip(_ticks(), _BEGAN, strict=True))
    about = {"processor": names[0] if names else platform.processor(), "cores": cores, "system": f"{platform.system()} {platform.release()}"}
    return about | {"stolen": f"{100 * stolen / max(all_, 1):.1f} %"}


def _save(path: Path, found: Sequence[Figure]) -> None:
    path.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf8")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
