"""The default data: crops of real textures, defects drawn on them. Labelled "real parts, generated"."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scenarium.core import Row, images
from scenarium.core.sources import PackageFile
from scenarium_defect_detection.simulate import DEFECTS

SHA256 = {
    "brick": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "grass": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "gravel": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
}
TEXTURES = tuple(
    PackageFile("scikit-image", "0.26.0", f"skimage/data/{name}.png", sha256, "BSD-3-Clause (package); photograph CC0") for name, sha256 in SHA256.items()
)
"""Three photographs of 512 x 512 pixels, grey."""

SIDE = 128
GOOD = "good"
UNSEEN = "smear"
"""The kind of defect that only the held-out part has."""
HELD_OUT = 352
"""Columns from here on are the held-out region: no crop crosses it."""


def read_textures(paths: list[Path], *, unseen: bool) -> list[Row]:
    """Crops of each texture: left of ``HELD_OUT`` for training (every fifth for validation), right of it for the test.

    ``unseen`` adds the kind ``UNSEEN`` to the test, which a supervised model cannot name and so does not get.
    """
    rows: list[Row] = []
    for number, path in enumerate(paths):
        grey = images.to_grey(images.read_image(str(path)))
        rng = np.random.default_rng((2024, number))
        known = [kind for kind in DEFECTS if kind != UNSEEN]
        for split, good, each in (("train", 80, 25), ("val", 16, 5), ("test", 40, 10)):
            kinds = [*known, UNSEEN] if unseen and split == "test" else known
            for kind in [GOOD] * good + [kind for kind in kinds for _ in range(each)]:
                rows.append(_part(grey, kind, split, rng) | {"texture": path.stem})
    return rows


def _part(grey: np.ndarray, kind: str, split: str, rng: np.random.Generator) -> Row:
    left = rng.integers(HELD_OUT, 512 - SIDE + 1) if split == "test" else rng.integers(0, HELD_OUT - SIDE + 1)
    # Validation stands below row 384, so that its crops do not overlap those of training.
    top = rng.integers(0, 512 - SIDE + 1) if split == "test" else 384 if split == "val" else rng.integers(0, 384 - SIDE + 1)
    crop = grey[top : top + SIDE, left : left + SIDE].astype(np.float32)
    crop = crop * rng.uniform(0.85, 1.15) + rng.uniform(-12, 12)
    mask = np.zeros(crop.shape, dtype=bool)
    while kind != GOOD and mask.sum() < 12:
        changed, mask = DEFECTS[kind](crop, rng)
        crop = changed if mask.sum() >= 12 else crop
    return {"image": crop.clip(0, 255).astype(np.uint8), "label": kind, "mask": mask.astype(np.uint8) * 255, "_split": split}
