"""Pictures as arrays: decode what a client or a data set brings, bring it to a model's size, encode it again.

Everything is NumPy and Pillow, so a scenario that is served from an export needs no torch. Pillow is imported when a function
is called. A picture is ``uint8`` ``[height, width, 3]`` (red, green, blue); a mask is ``bool`` ``[height, width]``.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from scenarium.core.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

ImageValue: TypeAlias = "str | bytes | np.ndarray"
"""What a field of kind ``image`` or ``mask`` holds: a path, encoded bytes, or a ``uint8`` array ``[H, W]`` or ``[H, W, 3]``."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Formats that are read. Pillow knows more, each with a decoder that untrusted bytes would reach."""
MAX_PIXELS = 50_000_000
"""Largest picture, in pixels: beyond a 48-megapixel camera; 150 MB as an array."""

MAX_SCANS = 100
"""Most scans of a progressive JPEG: each may be a few bytes and costs a pass over all pixels. Encoders write about ten."""
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""What ends the coded data of a scan (ITU-T T.81, B.1.1)."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Channel statistics that torchvision's pretrained weights expect, on the scale 0 to 1."""


def read_image(value: ImageValue, field: str = "image", *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode one picture into ``uint8`` ``[H, W, 3]``.

    The first frame of an animation; turned as its EXIF orientation says; grey, palette, CMYK and 16-bit pictures become 8-bit RGB;
    transparent parts are laid on white.

    Raises:
        BadInput: names ``field``: empty, no picture of the known formats, damaged or cut off, more than ``max_pixels`` (refused from
            the header, before memory is taken), a JPEG of more than ``MAX_SCANS`` scans, or pixels without a known range (floating point,
            32-bit).
    """
    if isinstance(value, np.ndarray):
        return _from_array(value, field)
    picture = _open(value, field, max_pixels)
    return np.asarray(_upright(_to_rgb(picture, field), picture))


def read_mask(value: ImageValue, field: str = "mask", *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode one mask into ``bool`` ``[H, W]``: marked are the values above half of the range; in a palette picture every index but 0.

    Raises:
        BadInput: as ``read_image``.
    """
    if not isinstance(value, np.ndarray):
        picture = _open(value, field, max_pixels)
        if picture.mode == "P":
            return np.asarray(_upright(picture, picture)) > 0
        value = np.asarray(_upright(_to_rgb(picture, field), picture))
    if value.dtype == bool and value.ndim == 2:
        return value
    grey = to_grey(_from_array(value, field))
    # Some tools write the classes 0 and 1 (or 0 to n) into an 8-bit picture instead of black and white.
    return grey > (127 if grey.max(initial=0) > 127 else 0)


def size_of(value: ImageValue, field: str = "image") -> tuple[int, int]:
    """Height and width as ``read_image`` gives them, read from the header alone.

    Raises:
        BadInput: as ``read_image``.
    """
    if isinstance(value, np.ndarray):
        return int(value.shape[0]), int(value.shape[1])
    picture = _open(value, field, MAX_PIXELS, load=False)
    # Orientations 5 to 8 lay the picture on its side.
    return picture.size if _orientation(picture) >= 5 else picture.size[::-1]


def encoded(value: ImageValue) -> bytes:
    """The picture as the bytes that a client would send: a file's content, or an array as PNG."""
    if isinstance(value, bytes):
        return value
    return encode_png(value) if isinstance(value, np.ndarray) else Path(value).read_bytes()


def encode_png(image: np.ndarray) -> bytes:
    """A ``uint8`` array ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]`` as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def data_url(png: bytes) -> str:
    """A PNG file as a ``data:`` URL, for a page that stands alone."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def to_grey(image: np.ndarray) -> np.ndarray:
    """Luma of a picture (ITU-R BT.601, as Pillow's ``L``): ``uint8`` ``[H, W]``."""
    weights = np.array([299, 587, 114], dtype=np.int64)
    return np.asarray((image.astype(np.int64) @ weights + 500) // 1000, dtype=np.uint8)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bring a ``uint8`` or ``float32`` array ``[H, W]`` or ``[H, W, 3]`` to a size: bilinear, with antialiasing where it shrinks."""
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR))


def centre_square(image: np.ndarray) -> np.ndarray:
    """The largest square in the middle of a picture (a view)."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def normalise(image: np.ndarray, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> np.ndarray:
    """``uint8`` ``[H, W, 3]`` to ``float32`` ``[3, H, W]``: scaled to 0..1, less ``mean``, over ``std``, by channel."""
    scale = (1.0 / (255.0 * np.asarray(std))).astype(np.float32)
    shift = (np.asarray(mean) / np.asarray(std)).astype(np.float32)
    return np.ascontiguousarray((image * scale - shift).transpose(2, 0, 1))


def _open(value: str | bytes, field: str, max_pixels: int, *, load: bool = True) -> Picture:
    from PIL import Image, UnidentifiedImageError

    content = Path(value).read_bytes() if isinstance(value, str) else value
    if not content:
        raise BadInput(field, "is empty", "为空")
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that are refused below, and of EXIF blocks that are ignored.
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _too_large(field, "too many", "过多", max_pixels) from None
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise BadInput(field, f"is not a picture that can be read (known formats: {known})", f"不是可读取的图片（支持的格式：{known}）") from None
    except Exception as fault:
        raise _damaged(field, fault) from None
    if picture.width * picture.height > max_pixels:
        raise _too_large(field, f"{picture.width} x {picture.height}", f"{picture.width} x {picture.height}", max_pixels)
    if load:
        if picture.format == "JPEG" and _has_more_scans(content, MAX_SCANS):
            raise BadInput(field, f"is a JPEG of more than {MAX_SCANS} scans", f"是扫描次数超过 {MAX_SCANS} 的 JPEG")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                picture.load()
        except Exception as fault:  # the decoders answer damage with OSError, SyntaxError, ValueError, struct.error, IndexError, …
            raise _damaged(field, fault) from None
    return picture


def _has_more_scans(jpeg: bytes, limit: int) -> bool:
    """Whether the first picture of a file has more scans than ``limit``; what is damaged is left to the decoder."""
    at, scans = 2, 0
    while (found := _MARKER.search(jpeg, at)) and found[0] != b"\xff\xd9":
        scans += found[0] == b"\xff\xda"
        if scans > limit:
            return True
        at = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2], "big")
    return False


def _damaged(field: str, fault: Exception) -> BadInput:
    return BadInput(field, f"is a damaged or cut off picture ({fault})", f"是损坏或被截断的图片（{fault}）")


def _too_large(field: str, pixels_en: str, pixels_zh: str, max_pixels: int) -> BadInput:
    limit = f"{max_pixels / 1e6:.0f}"
    return BadInput(field, f"has {pixels_en} pixels, more than {limit} million", f"的像素（{pixels_zh}）超过上限 {limit} 百万")


def _to_rgb(picture: Picture, field: str) -> Picture:
    from PIL import Image

    mode = picture.mode
    if mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if mode == "I" and (values := np.asarray(picture)).min() >= 0 and values.max() <= 0xFFFF:  # 16-bit PNG in older Pillow
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if mode in ("I", "F"):
        kinds = {"I": ("32-bit", "32 位整数"), "F": ("floating-point", "浮点")}[mode]
        raise BadInput(
            field, f"has {kinds[0]} pixels, whose range is unknown; save it with 8 or 16 bits", f"的像素为{kinds[1]}，取值范围未知；请存为 8 位或 16 位"
        )
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture if mode == "RGB" else picture.convert("RGB")


def _upright(pixels: Picture, original: Picture) -> Picture:
    """Turn ``pixels`` as the EXIF orientation of ``original`` says."""
    from PIL import Image

    turn = Image.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    how = turns.get(_orientation(original))
    return pixels if how is None else pixels.transpose(how)


def _orientation(picture: Picture) -> int:
    """The EXIF orientation, 1 to 8."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = picture.getexif().get(0x0112, 1)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1
    return found if found in range(1, 9) else 1


def _from_array(value: np.ndarray, field: str) -> np.ndarray:
    grey = value.ndim == 2 or (value.ndim == 3 and value.shape[2] == 1)
    if value.dtype != np.uint8 or not (grey or (value.ndim == 3 and value.shape[2] == 3)) or not value.size:
        got = f"{value.dtype} {list(value.shape)}"
        raise BadInput(field, f"is an array {got}, not uint8 [H, W] or [H, W, 3]", f"是 {got} 的数组，而不是 uint8 的 [H, W] 或 [H, W, 3]")
    return np.repeat(value.reshape(*value.shape[:2], 1), 3, axis=2) if grey else value
