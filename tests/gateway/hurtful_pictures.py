"""Pictures built to hurt: small files that claim or hold much, and files that are none."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, rows: int | None = None) -> bytes:
    """A black grey picture of any size in few bytes."""
    packer, packed = zlib.compressobj(9), []
    for _ in range(height if rows is None else rows):
        packed.append(packer.compress(b"\0" * (width + 1)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", b"".join(packed) + packer.flush()) + chunk(b"IEND", b"")


def gif(width: int, height: int, frames: int) -> bytes:
    """An animation of empty frames."""
    frame = b"\x2c" + struct.pack("<HHHH", 0, 0, width, height) + b"\0\x02\x02\x4c\x01\0"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff" + frame * frames + b";"


def scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: each is a few bytes, and a pass over the whole picture."""
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * count + b"\xff\xd9"


def webp(width: int, height: int) -> bytes:
    """The header of a WebP picture."""
    body = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def tiff(width: int, height: int, entries: int = 0) -> bytes:
    """A TIFF header that claims much, whose directory names itself as the next."""
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (278, 4, 1, height),
        (279, 4, 1, 8),
    ]
    tags += [(60_000, 4, 1, 0)] * entries
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + struct.pack("<I", 8)


BOMBS = {
    "png of 10 gigapixels": png(100_000, 100_000, rows=50),
    "png just above the limit": png(8000, 6300, rows=10),
    "png that is 2 GB": png(2**31 - 1, 1, rows=0),
    "png text of 100 MB": png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 100_000_000, 9))),
    "png profile of 100 MB": png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 100_000_000, 9))) + b"x",
    "png cut off": png(2000, 2000)[:300],
    "gif of 4 gigapixels": gif(65_535, 65_535, 1),
    "jpeg of 2000 scans": scans(3000, 2000),
    "webp of 16383²": webp(16_383, 16_383),
    "tiff of 10 gigapixels": tiff(100_000, 100_000),
    "tiff with 60000 tags": tiff(100, 100, 60_000),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "zip": b"PK\x03\x04" + b"\0" * 100,
    "pickle": b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.",
    "numpy": b"\x93NUMPY\x01\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "nothing": b"",
}
SERVED = {"png text of 100 MB", "png profile of 100 MB", "tiff with 60000 tags"}
"""What is no picture's content is left out, not refused; or refused, as the library sees it."""
