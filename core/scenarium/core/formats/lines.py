"""Lines of a text file in whatever encoding it has: UTF-8, UTF-8 with BOM, UTF-16, GB18030 (and so GBK), Windows-1252, or a mixture."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from scenarium.core.errors import ScenariumError
from scenarium.core.findings import Findings

OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
SAMPLE = 4096


def suffix(path: Path) -> str:
    """The ending that tells the format, without the compression: ``.csv`` of ``data.csv.gz``."""
    endings = [s.lower() for s in path.suffixes]
    if endings and endings[-1] in OPENERS:
        endings.pop()
    return endings[-1] if endings else ""


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, uncompressed."""
    opener = OPENERS.get(path.suffix.lower())
    opened: IO[bytes] = opener(path, "rb") if opener else path.open("rb")
    return opened


def read_lines(path: Path, findings: Findings, encoding: str | None = None) -> Iterator[str]:
    """The lines of ``path`` with their line ends, each decoded once; what is not UTF-8 is stated in ``findings``.

    ``encoding`` is used as it is where the user named one.

    Raises:
        ScenariumError: SCN-2006 (unreadable, cut-off archive, not in the named encoding).
    """
    try:
        with open_bytes(path) as file:
            head = file.read(SAMPLE)
            found = encoding or _wide(head)
            file.seek(0)
            if found:
                with io.TextIOWrapper(file, encoding=found, newline="") as reader:
                    yield from reader
            else:
                yield from _mixed(path, file, findings)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as fault:
        raise ScenariumError("SCN-2006", file=path, reason=f"the archive is damaged ({fault})", reason_zh=f"压缩文件已损坏（{fault}）") from None
    except (UnicodeError, LookupError) as fault:
        raise ScenariumError("SCN-2006", file=path, reason=f"it is not in {found} ({fault})", reason_zh=f"编码不是 {found}（{fault}）") from None
    except OSError as fault:
        reason = fault.strerror or str(fault)
        raise ScenariumError("SCN-2006", file=path, reason=reason, reason_zh=reason) from None


def _wide(head: bytes) -> str | None:
    """The encoding that a mark or the pattern of zero bytes tells; None: bytes of an ASCII superset."""
    for mark, name in MARKS:
        if head.startswith(mark):
            return name
    # Text in an ASCII superset holds no zero byte; in UTF-16 every comma, digit and line end has one, at odd places where the low
    # byte comes first.
    odd, even = head[1::2].count(0), head[::2].count(0)
    if 100 * (odd + even) < len(head) or odd == even:
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _mixed(path: Path, file: IO[bytes], findings: Findings) -> Iterator[str]:
    chinese = False
    for number, raw in enumerate(file, 1):
        try:
            text = raw.decode("utf-8")
            # In GB 2312 the two bytes of 诈 and of 骗 are valid UTF-8 too, though of other letters: the lines before tell which it is.
            if not (chinese and _two_byte_letters(text)):
                yield text
                continue
        except UnicodeDecodeError:
            pass
        text, name = _legacy(raw)
        chinese = chinese or name == "GB18030"
        findings.add("repair", "SCN-2101", file=path, line=number, kind=name, encoding=name)
        yield text


def _two_byte_letters(text: str) -> bool:
    """Whether all that is not ASCII took two bytes of UTF-8, and there is such a letter."""
    wide = [sign for sign in text if sign >= "\x80"]
    return bool(wide) and max(wide) < "\u0800"


def _legacy(raw: bytes) -> tuple[str, str]:
    """Decode a line that is not UTF-8.

    GB18030 takes nearly any pair of bytes, so it is believed only where most pairs lie in the plane of GB 2312 (both bytes from
    0xA1 on), as common Chinese text does. Accented letters of Windows-1252 are mostly followed by an ASCII letter.
    """
    try:
        text = raw.decode("gb18030")
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace"), "Windows-1252"
    common = wide = index = 0
    while index < len(raw) - 1:
        if raw[index] < 0x80:
            index += 1
            continue
        wide += 1
        common += raw[index] >= 0xA1 and raw[index + 1] >= 0xA1
        index += 2
    if wide and 2 * common > wide:
        return text, "GB18030"
    return raw.decode("cp1252", "replace"), "Windows-1252"
