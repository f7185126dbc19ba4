"""Sheet of image pairs: A and B of one name side by side, one scale, their values, and the detail that differs most."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from zoomiqa_reward.images import sheet_card
from zoomiqa_reward.images.drawing import BACK, GOOD, INK, MUTED
from zoomiqa_reward.images.lettering import draw_text, wrap
from zoomiqa_reward.images.loading import load_image, to_pil
from zoomiqa_reward.images.sheet_card import CELL_PX, DETAIL_PX, Shown
from zoomiqa_reward.images.sheet_entry import SheetEntry

MARGIN_PX = 16
LINE_PX = 24
SEARCH_PX = 64
"""Longest side of the copies in which the place that differs most is looked for."""


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
    Both images of a pair are drawn by one factor, a small one enlarged without blur; below them the detail in which
    they differ most. Two images are open at a time. Raises ValueError without pairs, ImageError.
    """
    if not pairs:
        raise ValueError("pair_sheet: no pairs; give at least one")
    heads = [wrap(f"{side}: {title}", 20, CELL_PX) for side, title in zip("AB", titles, strict=True)]
    top = MARGIN_PX + max(map(len, heads)) * 28 + 8
    rows = [_row(pair, measure) for pair in pairs]
    sheet = Image.new("RGB", (2 * CELL_PX + 3 * MARGIN_PX, top + sum(row.height for row in rows)), BACK)
    draw = ImageDraw.Draw(sheet)
    for side, lines in enumerate(heads):
        for k, line in enumerate(lines):
            draw_text(draw, (_left(side), MARGIN_PX + 28 * k), line, 20, INK)
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _left(side: int) -> int:
    return MARGIN_PX + side * (CELL_PX + MARGIN_PX)


def _row(pair: SheetPair, measure: str) -> Image.Image:
    images = [to_pil(load_image(file)).convert("RGB") for file in pair.files]
    scale = sheet_card.scale_of([image.size for image in images])
    centre = _differing(images[0], images[1])
    shown = [sheet_card.look_at(image, centre) for image in images]
    gap = 0.0 if pair.values[0] == pair.values[1] else pair.values[0] - pair.values[1]  # both may be infinite
    name = wrap(f"{pair.name}: A - B = {gap:+.3f} by {measure}", 16, 2 * CELL_PX + MARGIN_PX)
    image_px = max(max(1, round(image.height * scale)) for image in images)
    detail_px = DETAIL_PX + 2 if sheet_card.has_detail(scale) else 0
    head_px = len(name) * LINE_PX + 6
    row = Image.new(
        "RGB", (2 * CELL_PX + 3 * MARGIN_PX, head_px + image_px + detail_px + LINE_PX + 10 + MARGIN_PX), BACK
    )
    draw = ImageDraw.Draw(row)
    for k, line in enumerate(name):
        draw_text(draw, (MARGIN_PX, k * LINE_PX), line, 16, MUTED)
    for side in (0, 1):
        row.paste(_card(shown[side], scale, image_px, detail_px), (_left(side), head_px))
        value = pair.values[side]
        text = "not measured" if math.isnan(value) else f"{value:.3f}"
        colour = GOOD if value > pair.values[1 - side] else INK
        draw_text(draw, (_left(side), head_px + image_px + detail_px + 6), text, 20, colour)
    return row


def _card(shown: Shown, scale: float, image_px: int, detail_px: int) -> Image.Image:
    card = sheet_card.empty_card(image_px + detail_px)
    sheet_card.draw_image(card, shown, SheetEntry(name=""), scale, image_px)
    if detail_px:
        sheet_card.draw_detail(card, shown, scale, image_px + 2)
    return card


def _differing(a: Image.Image, b: Image.Image) -> tuple[float, float]:
    """Return the middle of the part, as large as a detail, in which two images differ most; as fractions."""
    factor = min(1.0, SEARCH_PX / max(a.size))
    size = max(1, round(a.width * factor)), max(1, round(a.height * factor))
    small = (image.convert("L").resize(size, Image.Resampling.BOX) for image in (a, b))
    first, second = (np.asarray(image, dtype=np.float64) for image in small)
    sums = np.abs(first - second).cumsum(0).cumsum(1)
    sums = np.pad(sums, ((1, 0), (1, 0)))
    width = min(max(1, round(CELL_PX / 2 * factor)), size[0])
    height = min(max(1, round(DETAIL_PX / 2 * factor)), size[1])
    parts = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(int(parts.argmax()), parts.shape)
    return (float(left) + width / 2) / size[0], (float(top) + height / 2) / size[1]
