"""From a score map to boxes, a heat-map picture and AUROC. NumPy and Pillow only: this runs where a version is served."""

from __future__ import annotations

import io

import numpy as np

from scenarium.core import images


def boxes(scores: np.ndarray, threshold: float, height: int, width: int, limit: int = 20) -> list[tuple[list[int], float]]:
    """Rectangles around the 4-connected places of ``scores`` ``[h, w]`` that are above ``threshold``, the strongest first.

    Returns:
        ``([x1, y1, x2, y2], highest score)`` in pixels of the picture (``height``, ``width``), x2 and y2 exclusive.
    """
    above = scores > threshold
    seen = np.zeros_like(above)
    found = []
    for start in zip(*np.nonzero(above), strict=True):
        if seen[start]:
            continue
        stack, cells = [start], []
        seen[start] = True
        while stack:
            row, column = stack.pop()
            cells.append((row, column))
            for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if 0 <= near[0] < above.shape[0] and 0 <= near[1] < above.shape[1] and above[near] and not seen[near]:
                    seen[near] = True
                    stack.append(near)
        place = np.array(cells)
        (top, left), (bottom, right) = place.min(0), place.max(0) + 1
        y, x = height / scores.shape[0], width / scores.shape[1]
        box = [int(left * x), int(top * y), int(np.ceil(right * x)), int(np.ceil(bottom * y))]
        found.append((box, float(scores[place[:, 0], place[:, 1]].max())))
    return sorted(found, key=lambda entry: -entry[1])[:limit]


def levels(scores: np.ndarray, threshold: float, height: int, width: int, side: int = 256) -> np.ndarray:
    """Score map as ``uint8`` in the picture's aspect, at most ``side`` pixels: s / (s + threshold), so that 128 is the threshold."""
    scale = min(1.0, side / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    share = np.maximum(scores, 0) / np.maximum(np.maximum(scores, 0) + threshold, 1e-12)
    return np.asarray(np.round(images.resize(share.astype(np.float32), *size).clip(0, 1) * 255), dtype=np.uint8)


def heat_png(level: np.ndarray) -> bytes:
    """The levels as a PNG with a palette from black over red and yellow to white, the clearer the lower: lay it over the picture.

    The palette index is the level, so the numbers can be read back from the file (``read_levels``).
    """
    from PIL import Image

    v = np.arange(256) / 255
    palette = np.stack([(3 * v).clip(0, 1), (3 * v - 1).clip(0, 1), (3 * v - 2).clip(0, 1)], axis=1)
    picture = Image.fromarray(level)
    picture = picture.convert("L").convert("P") if picture.mode != "L" else picture
    indexed = Image.new("P", picture.size)
    indexed.putpalette((palette * 255).astype(np.uint8).ravel().tolist())
    indexed.frombytes(picture.tobytes())
    buffer = io.BytesIO()
    indexed.save(buffer, format="PNG", transparency=bytes((v * 230).astype(np.uint8).tolist()))
    return buffer.getvalue()


def read_levels(png: bytes) -> np.ndarray:
    """The levels of a heat map that ``heat_png`` made: ``uint8`` ``[H, W]``."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)), dtype=np.uint8)


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counted half (Mann-Whitney U)."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left").astype(np.float64)
    upto = np.searchsorted(ordered, positive, "right")
    return float((below + upto).mean() / (2 * len(ordered)))


def auroc_of_counts(positive: np.ndarray, negative: np.ndarray) -> float:
    """The same from how often each level 0..255 occurs: ``[256]`` counts each."""
    below = np.concatenate([[0], np.cumsum(negative)[:-1]])
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))
