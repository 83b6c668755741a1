"""Folders of images: sub-folders as labels or a table of labels beside the pictures; and which files are not whole."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

from scenarium.core.errors import ScenariumError
from scenarium.core.formats.tables import Record

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"})
MASKS = frozenset({"mask", "masks", "ground_truth", "groundtruth", "annotation_masks"})
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test", "testing": "test"}
CARRIERS = frozenset({"images", "image", "img", "imgs", "data"})
"""Folders that only hold the pictures and so are no label."""


def find_images(root: Path) -> list[Path]:
    """All images below ``root`` in the order of their paths, without hidden files."""
    found = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [Path(folder, name) for name in sorted(names) if os.path.splitext(name)[1].lower() in ENDINGS and not name.startswith(".")]
    return found


def read_folder(root: Path) -> Iterator[Record]:
    """One record an image: ``image``, ``label`` (its folders), ``mask`` where one lies in a folder of masks, ``_split`` by folder.

    Takes ``cat/1.jpg``, ``train/cat/1.jpg`` and the MVTec layout (``test/scratch/000.png`` beside
    ``ground_truth/scratch/000_mask.png``).
    """
    pictures: list[tuple[Path, str | None, tuple[str, ...]]] = []
    masks: dict[tuple[str, ...], Path] = {}
    for path in find_images(root):
        folders = PurePath(os.path.relpath(path, root)).parts[:-1]
        split = next((SPLITS[f.lower()] for f in folders if f.lower() in SPLITS), None)
        label = tuple(f for f in folders if f.lower() not in SPLITS and f.lower() not in CARRIERS and f.lower() not in MASKS)
        if any(f.lower() in MASKS for f in folders):
            masks[*label, path.stem.removesuffix("_mask")] = path
        else:
            pictures.append((path, split, label))
    for path, split, label in pictures:
        record: Record = {"image": str(path), "_file": str(path), "_line": None}
        if label:
            record["label"] = "/".join(label)
        if mask := masks.get((*label, path.stem)):
            record["mask"] = str(mask)
        if split:
            record["_split"] = split
        yield record


def unusable(images: Sequence[Any]) -> dict[int, str]:
    """Which of ``images`` (paths or encoded bytes) do not decode to the last row: index to the reason. Several at a time.

    Raises:
        ScenariumError: SCN-2013, Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ScenariumError("SCN-2013", what="images", module="pillow") from None

    def reason(image: Any) -> str | None:
        try:
            with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
                opened.load()
        except Exception as fault:  # Pillow's decoders raise nearly anything on damaged input
            return str(fault).replace(str(image), "").strip() if isinstance(image, str) else str(fault)
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return {index: why for index, why in enumerate(pool.map(reason, images)) if why is not None}
