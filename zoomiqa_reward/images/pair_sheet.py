"""Sheet of image pairs: A and B of one name side by side, their values below, one pair per row."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from zoomiqa_reward.images.drawing import BACK, CARD, GOOD, INK, MUTED, fit
from zoomiqa_reward.images.listing import printable
from zoomiqa_reward.images.loading import load_image, to_pil

CELL_PX = 384
"""Side of the square that an image is fitted into."""
HEAD_PX, FOOT_PX, MARGIN_PX = 40, 34, 16


@dataclass(frozen=True, kw_only=True)
class SheetPair:
    """One row: two files and their values."""

    name: str
    files: tuple[Path, Path]
    values: tuple[float, float]
    """Higher is better."""


def pair_sheet(pairs: Sequence[SheetPair], titles: tuple[str, str], measure: str) -> Image.Image:
    """Return the sheet as an RGB image, rows in the order of `pairs`.

    titles: what stands above the two columns. measure: the name of the values. The better of two values is green.
    Images are opened one at a time. Raises ValueError without pairs, ImageError.
    """
    if not pairs:
        raise ValueError("pair_sheet: no pairs; give at least one")
    width, row = 2 * CELL_PX + 3 * MARGIN_PX, HEAD_PX + CELL_PX + FOOT_PX + MARGIN_PX
    sheet = Image.new("RGB", (width, HEAD_PX + MARGIN_PX + len(pairs) * row), BACK)
    draw = ImageDraw.Draw(sheet)
    for side, title in enumerate(titles):
        _text(draw, (_left(side), MARGIN_PX), f"{'AB'[side]}: {title}", 20, INK, CELL_PX)
    for index, pair in enumerate(pairs):
        top = HEAD_PX + MARGIN_PX + index * row
        gap = pair.values[0] - pair.values[1]
        _text(draw, (MARGIN_PX, top + 12), f"{pair.name}   A - B = {gap:+.3f}, by {measure}", 16, MUTED, 2 * CELL_PX)
        for side in (0, 1):
            corner = (_left(side), top + HEAD_PX)
            sheet.paste(_card(pair.files[side]), corner)
            is_better = pair.values[side] > pair.values[1 - side]
            text = f"{pair.values[side]:.3f}" if math.isfinite(pair.values[side]) else "not measured"
            _text(draw, (corner[0], corner[1] + CELL_PX + 6), text, 20, GOOD if is_better else INK, CELL_PX)
    return sheet


def _left(side: int) -> int:
    return MARGIN_PX + side * (CELL_PX + MARGIN_PX)


def _card(file: Path) -> Image.Image:
    card = Image.new("RGB", (CELL_PX, CELL_PX), CARD)
    shown, _ = fit(to_pil(load_image(file)), CELL_PX)
    card.paste(shown, ((CELL_PX - shown.width) // 2, (CELL_PX - shown.height) // 2))
    return card


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: tuple[int, int, int], width: int
) -> None:
    font = ImageFont.load_default(size)
    line = printable(text)
    if draw.textlength(line, font=font) > width:
        while line and draw.textlength(f"{line}…", font=font) > width:
            line = line[:-1]
        line += "…"
    draw.text(at, line, font=font, fill=colour)
