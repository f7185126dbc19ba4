"""Text of any script in figures: with Pillow's own font, else an installed one, else as the escape of the letter.

Pillow's own font has the letters of English. For any other letter this looks through the fonts of the system and takes
the first one that has it, so a file name in Chinese or Arabic is drawn where a font for it is installed. A letter that
no font has is written as its escape (`\\u4e2d`), never as an empty box. Colour emoji fonts have no size to draw at, so
emoji are drawn by a plain font such as DejaVu Sans or Noto Emoji, or escaped.
"""

import functools
import os
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

from zoomiqa_reward.images.drawing import Colour
from zoomiqa_reward.images.listing import printable

MISSING = "\U0010ffff"
"""No font has a glyph for this code point, so it is drawn as the font's sign for a missing one."""
_PREFERRED = ("dejavusans.", "notosans-regular", "notosanscjk-regular", "arialunicode", "segoeui.", "arial.")
"""Beginnings of file names, in lower case: fonts of many scripts come before all others."""
_LAST_RESORT = "lastresort"
"""A font of macOS with a box for every letter."""

Run = tuple[str, str | None]
"""A piece of text, and the file of the font that draws it; None: Pillow's own."""


def draw_text(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: Colour) -> None:
    """Draw one line with its top left at `at`. size: height of the letters in px."""
    left, baseline = at[0], at[1] + round(0.95 * size)
    for piece, file in _runs(text):
        font = _font(file, size)
        draw.text((left, baseline), piece, font=font, fill=colour, anchor="ls", direction=_direction(font))
        left += font.getlength(piece, direction=_direction(font))


def text_width(text: str, size: int) -> float:
    """Return how wide `draw_text` draws the text, in px."""
    fonts = ((piece, _font(file, size)) for piece, file in _runs(text))
    return sum(font.getlength(piece, direction=_direction(font)) for piece, font in fonts)


def wrap(text: str, size: int, width: float, lines: int | None = None) -> list[str]:
    """Return the text in lines of at most `width` px: broken at blanks, and within a word that is longer than a line.

    lines: their largest number; where something is left out, the last line ends in an ellipsis. None: all of it.

    >>> wrap("one two", 14, 1000.0), wrap("", 14, 100.0)
    (['one two'], [])
    """
    wrapped: list[str] = []
    rest = " ".join(text.split())
    while rest:
        if text_width(rest, size) <= width:
            return [*wrapped, rest]
        if lines is not None and len(wrapped) == lines - 1:
            end = _fitting(rest, size, width - text_width("…", size))
            return [*wrapped, rest[:end].rstrip(" ,.;:") + "…"]
        end = max(_fitting(rest, size, width), 1)
        blank = rest.rfind(" ", 0, end + 1)
        cut = blank if blank > 0 else end
        wrapped.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return wrapped


def _fitting(text: str, size: int, width: float) -> int:
    """Return how many letters of the text fit, by halving."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle], size) <= width:
            low = middle
        else:
            high = middle - 1
    return low


@functools.lru_cache(maxsize=4096)
def _runs(text: str) -> tuple[Run, ...]:
    """Return the text in pieces of one font each. One font draws all of it where one can."""
    shown = printable(text)
    letters = {letter for letter in shown if not letter.isspace()}
    for file in (None, *dict.fromkeys(_file_for(letter) for letter in letters)):
        if file != "" and all(_has(file, letter) for letter in letters):
            return ((shown, file),)
    written = [letter if _file_for(letter) != "" else letter.encode("unicode_escape").decode() for letter in shown]
    runs: list[Run] = []
    for letter in "".join(written):
        file = runs[-1][1] if letter.isspace() and runs else _file_for(letter)
        runs.append((letter, file))
    return tuple(("".join(letter for letter, _ in run), file) for file, run in groupby(runs, key=lambda run: run[1]))


@functools.lru_cache(maxsize=4096)
def _file_for(letter: str) -> str | None:
    """Return the first font that has the letter: None is Pillow's own, an empty text stands for no font."""
    if letter.isspace() or _has(None, letter):
        return None
    return next((file for file in installed_fonts() if _has(file, letter)), "")


@functools.lru_cache(maxsize=65536)
def _has(file: str | None, letter: str) -> bool:
    try:
        font, absent = _probe(file)
        return bytes(font.getmask(letter)) != absent
    except OSError:  # a font of bitmaps, in colour, or damaged
        return False


@functools.lru_cache(maxsize=256)
def _probe(file: str | None) -> tuple[ImageFont.FreeTypeFont, bytes]:
    """Return the font at a small size, and what it draws for a letter that it lacks. Raises OSError.

    Letters are drawn plainly: the other layout adds a circle to a lone accent, which hides that the accent is missing.
    """
    font = _font(file, 20, ImageFont.Layout.BASIC)
    return font, bytes(font.getmask(MISSING))


@functools.lru_cache(maxsize=256)
def _font(file: str | None, size: int, layout: ImageFont.Layout | None = None) -> ImageFont.FreeTypeFont:
    if file is not None:
        return ImageFont.truetype(file, size, layout_engine=layout)
    bundled = ImageFont.load_default(size)
    return bundled if layout is None else bundled.font_variant(layout_engine=layout)  # type: ignore[union-attr,return-value]


def _direction(font: ImageFont.FreeTypeFont) -> str | None:
    """Return "ltr": a name in Arabic keeps its suffix at the right end; None where Pillow cannot set it."""
    return "ltr" if font.layout_engine == ImageFont.Layout.RAQM else None


@functools.cache
def installed_fonts() -> tuple[str, ...]:
    """Return the font files of the system: those of many scripts first, then by name."""
    files = {
        os.path.join(root, name)
        for folder in _font_folders()
        for root, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith((".ttf", ".otf", ".ttc")) and not name.lower().startswith(_LAST_RESORT)
    }

    def rank_of(file: str) -> tuple[int, bool, str]:
        name = os.path.basename(file).lower()
        first = next((k for k, start in enumerate(_PREFERRED) if name.startswith(start)), len(_PREFERRED))
        is_styled = any(style in name for style in ("bold", "italic", "oblique", "mono", "light", "black", "serif"))
        return first, is_styled, name

    return tuple(sorted(files, key=rank_of))


def _font_folders() -> Iterator[str]:
    if sys.platform == "win32":
        yield os.path.join(os.environ.get("WINDIR", r"C:\Windows"), "fonts")
        yield os.path.join(os.environ.get("LOCALAPPDATA", ""), "Microsoft", "Windows", "Fonts")
    elif sys.platform == "darwin":
        yield from ("/System/Library/Fonts", "/Library/Fonts", str(Path.home() / "Library" / "Fonts"))
    else:
        home = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
        shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        yield from (os.path.join(folder, "fonts") for folder in (home, *shared.split(":")))
