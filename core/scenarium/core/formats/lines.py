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
                yield from io.TextIOWrapper(file, encoding=found, newline="")
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
    half = max(1, len(head) // 2)
    if head[1::2].count(0) > 0.4 * half:
        return "utf-16-le"
    if head[::2].count(0) > 0.4 * half:
        return "utf-16-be"
    return None


def _mixed(path: Path, file: IO[bytes], findings: Findings) -> Iterator[str]:
    for number, raw in enumerate(file, 1):
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError:
            text, name = _legacy(raw)
            findings.add("repair", "SCN-2101", file=path, line=number, kind=name, encoding=name)
            yield text


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
