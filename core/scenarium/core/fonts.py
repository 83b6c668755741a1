"""A font with Chinese glyphs for reports, so that they read the same where none is installed.

The extra ``report``, which ``train`` includes, brings Noto Sans CJK SC (SIL Open Font License, inside the package mplfonts); without it an
installed font is used. Where there is none at all, text is left to the reader's browser.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

_INSTALLED = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC", "Microsoft YaHei", "Droid Sans Fallback")


@cache
def chinese() -> Path | None:
    """The font file used for Chinese text, None where there is none."""
    try:
        carried = Path(str(distribution("mplfonts").locate_file("mplfonts/fonts/NotoSansCJKsc-Regular.otf")))
        if carried.is_file():
            return carried
    except PackageNotFoundError:
        pass
    from matplotlib.font_manager import fontManager

    found = {entry.name: Path(entry.fname) for entry in fontManager.ttflist}
    return next((found[name] for name in _INSTALLED if name in found), None)


@cache
def families() -> list[str]:
    """Font families for matplotlib, in order: Latin text keeps DejaVu, Chinese glyphs come from the second."""
    from matplotlib.font_manager import FontProperties, fontManager

    path = chinese()
    if path is None:
        return ["DejaVu Sans"]
    if not any(Path(entry.fname) == path for entry in fontManager.ttflist):
        fontManager.addfont(path)
    return ["DejaVu Sans", FontProperties(fname=path).get_name()]


def subset(text: str) -> str | None:
    """The glyphs of ``text`` as a ``data:`` URL of a WOFF font; None where no Chinese font is found or none is needed."""
    path = chinese()
    wanted = {character for character in text if ord(character) > 0x2E7F}
    if path is None or not wanted:
        return None
    from fontTools.subset import Options, Subsetter, load_font, save_font

    # Hints and positioning tables triple the time and add nothing on a screen.
    options = Options(hinting=False, layout_features=[], flavor="woff", name_IDs=[], notdef_outline=True, desubroutinize=True, font_number=0)
    with quiet(logging.getLogger("fontTools")), load_font(str(path), options, lazy=True) as font:
        subsetter = Subsetter(options)
        subsetter.populate(text="".join(sorted(wanted)))
        subsetter.subset(font)
        buffer = io.BytesIO()
        save_font(font, buffer, options)
    return f"data:font/woff;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@contextmanager
def quiet(logger: logging.Logger) -> Iterator[None]:
    """Errors only, for a while: font libraries log what no reader can act on."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
