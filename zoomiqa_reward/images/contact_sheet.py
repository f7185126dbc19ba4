"""Contact sheet: images of one comparison side by side, best first, with numbers of one scale, reasons and regions.

All images are drawn by one factor, a small one enlarged by whole numbers without blur, so that what is sharper on the
sheet is sharper. Images of one size show the same detail. Names are written in full, in letters of any script.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from zoomiqa_reward.images import sheet_card
from zoomiqa_reward.images.drawing import BACK, INK, MUTED, Outline
from zoomiqa_reward.images.lettering import draw_text, wrap
from zoomiqa_reward.images.loading import load_image, to_pil
from zoomiqa_reward.images.sheet_card import CELL_PX, DETAIL_PX, Opener, Shown
from zoomiqa_reward.images.sheet_entry import (
    RATING_TIE,
    SheetEntry,
    best_first,
    entry_of,
    places,
    rationale_line,
)
from zoomiqa_reward.runs.outputs import write_figure

__all__ = ["CELL_PX", "MARGIN_PX", "SheetEntry", "SheetWords", "contact_sheet", "entry_of", "rationale_line"]

MARGIN_PX = 16
MOST_COLUMNS = 6
SIZES_APART = 4.0
"""Where the largest image is more than this times the smallest, one factor would hide the small ones: each has its own,
and its card names it."""
HEADER_SIZE, LEGEND_SIZE = 17, 14


@dataclass(frozen=True, kw_only=True)
class SheetWords:
    """What a sheet says about all its images."""

    title: str = ""
    measure: str = "rating"
    """Name of `SheetEntry.rating`."""
    second: str = "reason"
    """Name of `SheetEntry.second`."""
    is_second_first: bool = False
    """Images with a second measure come first, in its order."""
    tie: float = RATING_TIE
    """Largest difference of neighbours that are called tied."""
    digits: int = 2


def contact_sheet(
    images: Sequence[Opener],
    entries: Sequence[SheetEntry],
    path: str | os.PathLike[str] | None = None,
    columns: int | None = None,
    *,
    words: SheetWords | None = None,
    before: Sequence[tuple[Opener, SheetEntry]] = (),
    overwrite: bool = False,
) -> Image.Image:
    """Return the sheet as an RGB image and, with `path`, write it there.

    Candidates are laid out row by row, best first; those without a rating come last and say why. `images[k]` belongs
    to `entries[k]`; None stands for an image that could not be read, a function opens one when its turn comes (so
    that large images need not be in memory together). Equal numbers are called tied. before: images that come first
    and have no place, such as the input.
    Raises ValueError when the two differ in length or are empty, OutputError where `path` holds a file that this
    program did not make (unless `overwrite`).

    >>> contact_sheet([Image.new("RGB", (64, 48))], [SheetEntry(name="a", rating=3.2, rank=1)]).mode
    'RGB'
    """
    if len(images) != len(entries) or not entries:
        raise ValueError(f"contact_sheet: {len(images)} images and {len(entries)} entries; give one entry per image")
    words = words or SheetWords()
    order = best_first(entries)
    ranked = [entries[k] for k in order]
    cards = [*before, *((images[k], entry) for k, entry in zip(order, ranked, strict=True))]
    heads = [""] * len(before) + places(ranked, words.tie, is_second_first=words.is_second_first)
    shown = _look_at_all(cards)
    scales = _scales(shown)
    columns = min(columns or min(MOST_COLUMNS, math.ceil(math.sqrt(len(cards)))), len(cards))
    sheet = _lay_out(cards, heads, shown, scales, columns, words)
    if path is not None:
        write_figure(sheet, path, overwrite=overwrite)
    return sheet


def _look_at_all(cards: Sequence[tuple[Opener, SheetEntry]]) -> list[Shown | None]:
    """Open the images one at a time. Images of the first one's size show the same detail as it."""
    shown: list[Shown | None] = []
    first: tuple[int, int] | None = None
    shared = next((entry.crop_box for _, entry in cards if entry.crop_box is not None), None)
    for opener, entry in cards:
        image = opener() if callable(opener) else opener
        if image is None:
            shown.append(None)
            continue
        image = to_pil(load_image(image))  # upright and on white, as it was rated
        first = first or image.size
        box = shared if image.size == first else entry.crop_box
        shown.append(sheet_card.look_at(image, _centre(box, image.size)))
    return shown


def _centre(box: Sequence[float] | None, size: tuple[int, int]) -> tuple[float, float]:
    if box is None:
        return 0.5, 0.5
    return (box[0] + box[2]) / 2 / size[0], (box[1] + box[3]) / 2 / size[1]


def _scales(shown: Sequence[Shown | None]) -> list[float]:
    """Return by how much each image is enlarged: all alike, unless their sizes are too far apart."""
    sizes = [view.size for view in shown if view is not None]
    if not sizes:
        return [1.0] * len(shown)
    longest = [max(size) for size in sizes]
    if max(longest) <= SIZES_APART * min(longest):
        return [sheet_card.scale_of(sizes)] * len(shown)
    return [1.0 if view is None else sheet_card.scale_of([view.size]) for view in shown]


def _lay_out(
    cards: Sequence[tuple[Opener, SheetEntry]], heads: Sequence[str], shown: Sequence[Shown | None],
    scales: Sequence[float], columns: int, words: SheetWords,
) -> Image.Image:  # fmt: skip
    is_one_scale = len(set(scales)) == 1
    remarks = [
        "" if is_one_scale or view is None else _scale_name(scale) for view, scale in zip(shown, scales, strict=True)
    ]
    captions = [
        sheet_card.caption(entry, head, _numbers(entry, words), remark)
        for (_, entry), head, remark in zip(cards, heads, remarks, strict=True)
    ]
    heights = [round(view.size[1] * scale) for view, scale in zip(shown, scales, strict=True) if view is not None]
    image_px = max([min(max(heights, default=CELL_PX // 2), CELL_PX), 1])
    detail_px = DETAIL_PX + 2 if any(sheet_card.has_detail(scale) for scale in scales) and heights else 0
    rows = [list(range(start, min(start + columns, len(cards)))) for start in range(0, len(cards), columns)]
    row_px = [image_px + detail_px + max(captions[k].height for k in row) for row in rows]
    width = columns * (CELL_PX + MARGIN_PX) + MARGIN_PX
    header = wrap(_header(words, scales[0] if is_one_scale and heights else None), HEADER_SIZE, width - 2 * MARGIN_PX)
    legend = _legend([entry for _, entry in cards], shown, scales)
    top = MARGIN_PX + len(header) * round(1.4 * HEADER_SIZE) + len(legend) * 22 + (8 if header or legend else 0)
    sheet = Image.new("RGB", (width, top + sum(row_px) + len(rows) * MARGIN_PX), BACK)
    _draw_header(sheet, header, legend)
    for row, height in zip(rows, row_px, strict=True):
        for column, k in enumerate(row):
            card = sheet_card.empty_card(height)
            sheet_card.draw_image(card, shown[k], cards[k][1], scales[k], image_px)
            if detail_px and sheet_card.has_detail(scales[k]):
                sheet_card.draw_detail(card, shown[k], scales[k], image_px + 2)
            sheet_card.draw_caption(card, captions[k], image_px + detail_px)
            sheet.paste(card, (MARGIN_PX + column * (CELL_PX + MARGIN_PX), top))
        top += height + MARGIN_PX
    return sheet


def _numbers(entry: SheetEntry, words: SheetWords) -> list[str]:
    if not entry.valid or math.isnan(entry.rating):
        return []
    spread = f" ± {entry.std:.{words.digits}f}" if math.isfinite(entry.std) else ""
    numbers = [f"{words.measure} {entry.rating:.{words.digits}f}{spread}"]
    if not math.isnan(entry.second):
        numbers.append(f"{words.second} {entry.second:.{words.digits}f}")
    return numbers


def _scale_name(scale: float) -> str:
    return f"drawn at {round(100 * scale)} %" if scale < 1 else f"drawn x{scale:g}"


def _header(words: SheetWords, scale: float | None) -> str:
    common = "" if scale is None else f"All are {_scale_name(scale)}."
    return " ".join(text for text in (words.title, common) if text)


def _legend(
    entries: Sequence[SheetEntry], shown: Sequence[Shown | None], scales: Sequence[float]
) -> list[tuple[str, Outline]]:
    """Return what the outlines mean, of those that are drawn."""
    legend = []
    if any(entry.bbox is not None for entry in entries):
        legend.append(("the region that the model named", sheet_card.NAMED))
    if any(entry.crop_box is not None for entry in entries):
        legend.append(("the region that it looked at again", sheet_card.LOOKED_AT))
    detailed = [scale for scale, view in zip(scales, shown, strict=True) if view is not None]
    if any(sheet_card.has_detail(scale) for scale in detailed):
        factors = sorted({sheet_card.detail_factor(scale) for scale in detailed if sheet_card.has_detail(scale)})
        legend.append((f"the detail below the image, x{' or x'.join(map(str, factors))}", sheet_card.DETAILED))
    return legend


def _draw_header(sheet: Image.Image, header: Sequence[str], legend: Sequence[tuple[str, Outline]]) -> None:
    draw, top = ImageDraw.Draw(sheet), MARGIN_PX
    for line in header:
        draw_text(draw, (MARGIN_PX, top), line, HEADER_SIZE, INK)
        top += round(1.4 * HEADER_SIZE)
    for text, outline in legend:
        outline.draw(draw, (MARGIN_PX, top + 3, MARGIN_PX + 24, top + 15))
        draw_text(draw, (MARGIN_PX + 34, top + 1), text, LEGEND_SIZE, MUTED)
        top += 22
