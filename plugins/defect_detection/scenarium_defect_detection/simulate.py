"""Defects drawn on pictures: for training on good parts alone, and for the default data. NumPy and Pillow only.

Training and test draw by different rules, so that the default measurement is not a test on what was trained. ``disturb`` (training)
pastes, darkens and relights random blobs and strips, as CutPaste (Li et al., CVPR 2021) and DRAEM (Zavrtanik et al., ICCV 2021) do;
``DEFECTS`` (default data) draws scratches, stains, pits, cracks and smears.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scenarium.core import images


def noise(shape: tuple[int, int], cells: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise in 0..1, ``float32``, about ``cells`` bumps along the longer side."""
    height, width = shape
    scale = cells / max(shape)
    coarse = rng.random((max(2, round(height * scale) + 1), max(2, round(width * scale) + 1)), dtype=np.float32)
    return images.resize(coarse, height, width)


def blob(shape: tuple[int, int], rng: np.random.Generator, low: float = 0.03, high: float = 0.3) -> np.ndarray:
    """A ragged spot as ``bool`` ``[H, W]``; its extent is ``low`` to ``high`` of the shorter side, small ones more often."""
    height, width = shape
    side = min(shape) * low * (high / low) ** rng.random()
    stretch = 3 ** rng.uniform(-1, 1)
    angle = rng.uniform(0, np.pi)
    top, left = rng.random(2) * shape
    y, x = np.mgrid[:height, :width]
    u = ((x - left) * np.cos(angle) + (y - top) * np.sin(angle)) / (side * stretch / 2)
    v = ((y - top) * np.cos(angle) - (x - left) * np.sin(angle)) / (side / stretch / 2)
    ragged = noise(shape, min(shape) / max(side, 4) * 3, rng)
    found: np.ndarray = u * u + v * v + 1.2 * (ragged - 0.5) < 1
    return found


def disturb(pixels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A good part with simulated defects for training, or (one time in three) as it is.

    Args:
        pixels: ``uint8`` ``[H, W, 3]``.
        rng: decides everything.

    Returns:
        The picture, ``uint8`` ``[H, W, 3]``, and what was changed, ``bool`` ``[H, W]``.
    """
    shape = pixels.shape[:2]
    changed = np.zeros(shape, dtype=bool)
    if rng.random() < 1 / 3:
        return pixels, changed
    part = pixels.astype(np.float32)
    for _ in range(rng.integers(1, 4)):
        where = strip(shape, rng) if rng.random() < 0.45 else blob(shape, rng)
        kind, texture = rng.random(), noise(shape, 16, rng)[..., None]
        if kind < 0.4:
            new = part + rng.choice([-1, 1]) * rng.uniform(30, 120) * (0.6 + 0.8 * texture)
        elif kind < 0.85:
            factor = rng.uniform(0.2, 0.7) if rng.random() < 0.6 else rng.uniform(1.35, 2.2)
            new = part * (factor * (0.85 + 0.3 * texture))
        else:
            # Another place of the same part, turned and relit: right in its texture, wrong where it is.
            place = rng.integers(np.array(shape) // 8, 7 * np.array(shape) // 8)
            new = np.roll(part, (int(place[0]), int(place[1])), (0, 1))[::-1, :: rng.choice([1, -1])] * rng.choice([0.6, 0.75, 1.3, 1.5])
        part = np.where(where[..., None], new, part)
        changed |= where
    # What the paste did not change to the eye is no defect.
    changed &= np.abs(part - pixels).mean(2) > 4
    return part.clip(0, 255).astype(np.uint8), changed


def strip(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A narrow, slightly bent strip as ``bool`` ``[H, W]``."""
    height, width = shape
    y, x = np.mgrid[:height, :width]
    angle = rng.uniform(0, np.pi)
    top, left = rng.random(2) * shape
    along = (x - left) * np.cos(angle) + (y - top) * np.sin(angle)
    bend = (noise(shape, 5, rng) - 0.5) * rng.uniform(0, 0.15) * min(shape)
    across = (y - top) * np.cos(angle) - (x - left) * np.sin(angle) + bend
    half = rng.uniform(0.5, 0.015 * min(shape) + 1)
    found: np.ndarray = (np.abs(along) < rng.uniform(0.08, 0.5) * min(shape)) & (np.abs(across) < half)
    return found


# ── the default data ──────────────────────────────────────────────────────────────────────────────────────────────────


def _path(points: np.ndarray, shape: tuple[int, int], width: float) -> np.ndarray:
    """Pixels within ``width`` / 2 of a line through ``points`` ``[N, 2]`` (y, x)."""
    from PIL import Image, ImageDraw

    layer = Image.new("L", (shape[1], shape[0]))
    ImageDraw.Draw(layer).line([(float(x), float(y)) for y, x in points], fill=255, width=max(1, round(width)), joint="curve")
    return np.asarray(layer) > 0


def scratch(grey: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One to three bright parallel lines."""
    shape = grey.shape
    start, angle = rng.random(2) * shape, rng.uniform(0, np.pi)
    direction = np.array([np.sin(angle), np.cos(angle)])
    length = rng.uniform(0.4, 0.9) * shape[0]
    mask = np.zeros(shape, dtype=bool)
    for step in range(rng.integers(1, 4)):
        origin = start + step * rng.uniform(3, 7) * direction[::-1] * (1, -1)
        mask |= _path(np.stack([origin - direction * length / 2, origin + direction * length / 2]), shape, rng.uniform(1, 2.2))
    return np.where(mask, grey + rng.uniform(50, 100), grey), mask


def stain(grey: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A translucent dark spot with a soft edge."""
    y, x = np.mgrid[: grey.shape[0], : grey.shape[1]]
    top, left = rng.uniform(0.15, 0.85, 2) * grey.shape
    radius = rng.uniform(0.06, 0.18) * grey.shape[0]
    reach = np.hypot(y - top, x - left) / radius + 0.5 * (noise(grey.shape, 10, rng) - 0.5)
    depth = np.clip(1.3 - reach, 0, 1) ** 0.7
    return grey * (1 - rng.uniform(0.4, 0.7) * depth), depth > 0.25


def pit(grey: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A few small holes, dark on one side and lit on the other."""
    y, x = np.mgrid[: grey.shape[0], : grey.shape[1]]
    changed, mask = grey.copy(), np.zeros(grey.shape, dtype=bool)
    for _ in range(rng.integers(1, 5)):
        top, left = rng.uniform(0.1, 0.9, 2) * grey.shape
        radius = rng.uniform(2.5, 6)
        inside = np.hypot(y - top, x - left) < radius
        shade = ((y - top) + (x - left)) / radius
        changed = np.where(inside, changed * 0.35 + 45 * np.clip(shade, 0, 2), changed)
        mask |= inside
    return changed, mask


def crack(grey: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A dark random walk that sometimes branches."""
    mask = np.zeros(grey.shape, dtype=bool)
    start, angle = rng.uniform(0.2, 0.8, 2) * grey.shape, rng.uniform(0, 2 * np.pi)
    for _ in range(rng.integers(1, 4)):
        turns = angle + np.cumsum(rng.normal(0, 0.45, rng.integers(10, 26)))
        points = start + np.cumsum(np.stack([np.sin(turns), np.cos(turns)], 1) * rng.uniform(3, 6), axis=0)
        mask |= _path(points, grey.shape, rng.uniform(1, 2.6))
        start, angle = points[len(points) // 2], angle + rng.choice([-0.9, 0.9])
    return np.where(mask, grey * 0.25, grey), mask


def smear(grey: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A place where the texture is wiped out: its brightness stays, its detail goes."""
    mask = blob(grey.shape, rng, 0.2, 0.4)
    small = images.resize(grey.astype(np.float32), max(2, grey.shape[0] // 12), max(2, grey.shape[1] // 12))
    return np.where(mask, images.resize(small, *grey.shape), grey), mask


Draw = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
DEFECTS: dict[str, Draw] = {"scratch": scratch, "stain": stain, "pit": pit, "crack": crack, "smear": smear}
"""Kind of defect to what draws it on a grey ``float32`` ``[H, W]`` picture; each returns the picture and the mask."""
