"""Contact sheet: candidates of one image side by side, best first, with rating, reason and zoomed region.

Pillow alone, with the font that it bundles. Images keep their aspect; a small one is enlarged by whole numbers
with nearest neighbour, so that the sheet adds no blur of its own to what is to be judged.
"""

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from zoomiqa_reward.images.drawing import BACK, BAD, CARD, GOOD, INK, MARK, MUTED, fit
from zoomiqa_reward.images.listing import printable
from zoomiqa_reward.model.ratings import Assessment
from zoomiqa_reward.model.turns import Box, PixelBox
from zoomiqa_reward.runs.outputs import write_figure

CELL_PX = 384
"""Side of the square that an image is fitted into."""
INSET_PX = 160
"""Longest side of the detail laid over a corner of the image: the middle of the region that round 2 looked at."""
TEXT_PX = 118
"""Height of the caption under an image."""
MARGIN_PX = 16
RATIONALE_LINES = 3


@dataclass(frozen=True, kw_only=True)
class SheetEntry:
    """What stands under, and on, one candidate's image."""

    name: str
    rating: float = math.nan
    """1 bad .. 5 excellent; NaN where not valid."""
    std: float = math.nan
    rank: int | None = None
    """1 is best; equal numbers are ties. Without any, the higher rating comes first."""
    valid: bool = True
    error: str | None = None
    """Why there is no rating."""
    bbox: Box | None = None
    """Region that round 1 named, as fractions (left, top, right, bottom)."""
    crop_box: PixelBox | None = None
    """Region that round 2 looked at, in pixels of the image."""
    rationale: str = ""


def contact_sheet(
    images: Sequence[Image.Image | Callable[[], Image.Image] | None],
    entries: Sequence[SheetEntry],
    path: str | os.PathLike[str] | None = None,
    columns: int | None = None,
    *,
    overwrite: bool = False,
) -> Image.Image:
    """Return the sheet as an RGB image and, with `path`, write it there.

    Candidates are laid out row by row, best first; those without a rating come last and say why. `images[k]` belongs
    to `entries[k]`; None stands for an image that could not be read, a function opens one when its turn comes (so
    that large images need not be in memory together).
    Raises ValueError when the two differ in length or are empty, OutputError where `path` holds a file that this
    program did not make (unless `overwrite`).

    >>> contact_sheet([Image.new("RGB", (64, 48))], [SheetEntry(name="a", rating=3.2, rank=1)]).mode
    'RGB'
    """
    if len(images) != len(entries) or not entries:
        raise ValueError(f"contact_sheet: {len(images)} images and {len(entries)} entries; give one entry per image")
    order = sorted(range(len(entries)), key=lambda k: _place(entries[k]))
    columns = columns or min(4, math.ceil(math.sqrt(len(entries))))
    columns = min(columns, len(entries))
    rows = math.ceil(len(entries) / columns)
    width, height = CELL_PX + MARGIN_PX, CELL_PX + TEXT_PX + MARGIN_PX
    sheet = Image.new("RGB", (columns * width + MARGIN_PX, rows * height + MARGIN_PX), BACK)
    for index, k in enumerate(order):
        left, top = MARGIN_PX + index % columns * width, MARGIN_PX + index // columns * height
        image = images[k]
        sheet.paste(_card(image() if callable(image) else image, entries[k]), (left, top))
    if path is not None:
        write_figure(sheet, path, overwrite=overwrite)
    return sheet


def entry_of(
    name: str,
    *,
    rating: float,
    std: float = math.nan,
    rank: int | None = None,
    error: str | None = None,
    assessment: Assessment | None = None,
) -> SheetEntry:
    """Return the entry of a rated image, with the reason and the regions of its assessment where there is one.

    A NaN rating is one that could not be measured. The rating shown is the one given, not the assessment's.

    >>> entry_of("b", rating=math.nan, error="truncated").valid
    False
    """
    turns = assessment.turns if assessment is not None else ()
    return SheetEntry(
        name=name, rating=rating, std=std, rank=rank, valid=math.isfinite(rating), error=error,
        bbox=turns[0].bbox if turns else None,
        crop_box=turns[1].crop_box if len(turns) > 1 else None,
        rationale=rationale_line(assessment) if assessment is not None else "",
    )  # fmt: skip


def rationale_line(assessment: Assessment) -> str:
    """Return in one line what is wrong, where and how much: the last round's first section, its summary.

    The later sections say what to do and what was decided. Text that could not be read is no explanation: the line
    is empty for an assessment that is not valid, and for a round that holds neither a section nor a whole
    `<think>...</think>`.
    """
    if not assessment.valid or not assessment.turns:
        return ""
    last = assessment.turns[-1]
    sections = [" ".join(body.split()) for body in last.sections.values() if body.strip()]
    if sections:
        return sections[0]
    thought = re.search(r"<think>(.*?)</think>", last.text, re.DOTALL)
    return " ".join(thought[1].split()) if thought else ""


def _place(entry: SheetEntry) -> tuple[bool, float, float]:
    rank = math.inf if entry.rank is None else entry.rank
    return not entry.valid, rank, -entry.rating if entry.valid else 0.0


def _card(image: Image.Image | None, entry: SheetEntry) -> Image.Image:
    card = Image.new("RGB", (CELL_PX, CELL_PX + TEXT_PX), CARD)
    draw = ImageDraw.Draw(card)
    if image is None:
        draw.line((0, 0, CELL_PX, CELL_PX), fill=MUTED)
        draw.line((0, CELL_PX, CELL_PX, 0), fill=MUTED)
    else:
        rgb = image.convert("RGB")
        shown, scale = fit(rgb, CELL_PX)
        left, top = (CELL_PX - shown.width) // 2, (CELL_PX - shown.height) // 2
        card.paste(shown, (left, top))
        _draw_regions(card, rgb, entry, (left, top), scale)
    _caption(draw, entry)
    return card


def _draw_regions(
    card: Image.Image, image: Image.Image, entry: SheetEntry, origin: tuple[int, int], scale: float
) -> None:
    draw = ImageDraw.Draw(card)

    def outline(box: Sequence[float], width: int) -> tuple[float, float, float, float]:
        x0, y0, x1, y1 = (origin[i % 2] + value * scale for i, value in enumerate(box))
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0), width=width + 2)
        draw.rectangle((x0, y0, x1, y1), outline=MARK, width=width)
        return x0, y0, x1, y1

    if entry.bbox is not None and entry.bbox[2] > entry.bbox[0] and entry.bbox[3] > entry.bbox[1]:
        size = (image.width, image.height) * 2
        outline([value * side for value, side in zip(entry.bbox, size, strict=True)], 1)
    if entry.crop_box is None:
        return
    shown = outline(entry.crop_box, 2)
    inset = _detail(image, entry.crop_box, min(math.ceil(2 * scale), INSET_PX // 8))
    framed = Image.new("RGB", (inset.width + 4, inset.height + 4), MARK)
    framed.paste(inset, (2, 2))
    # The corner that hides the least of the region itself.
    corners = [(x, y) for y in (CELL_PX - framed.height, 0) for x in (CELL_PX - framed.width, 0)]
    card.paste(framed, min(corners, key=lambda at: _overlap((*at, at[0] + framed.width, at[1] + framed.height), shown)))


def _detail(image: Image.Image, box: PixelBox, factor: int) -> Image.Image:
    """Return the middle of the box enlarged by a whole number: the whole of it would be smaller than it is shown."""
    left, top, right, bottom = box
    width, height = (min(side, INSET_PX // factor) for side in (right - left, bottom - top))
    x, y = left + (right - left - width) // 2, top + (bottom - top - height) // 2
    detail = image.crop((x, y, x + width, y + height))
    return detail.resize((width * factor, height * factor), Image.Resampling.NEAREST)


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _caption(draw: ImageDraw.ImageDraw, entry: SheetEntry) -> None:
    top = CELL_PX + 10
    best = entry.valid and entry.rank == 1
    colour = GOOD if best else INK if entry.valid else BAD
    rank_text = f"#{entry.rank}" if entry.valid and entry.rank is not None else "" if entry.valid else "not rated"
    rating = f"{entry.rating:.2f}" if entry.valid else ""
    if entry.valid and math.isfinite(entry.std):
        rating += f" ± {entry.std:.2f}"
    big, small = ImageFont.load_default(20), ImageFont.load_default(14)
    right = CELL_PX - 12 - draw.textlength(rating, font=big)
    draw.text((right, top), rating, font=big, fill=colour)
    head = _cut(draw, f"{rank_text}  {printable(entry.name)}".strip(), big, right - 12 - (16 if rating else 0))
    draw.text((12, top), head, font=big, fill=colour)
    reason = entry.rationale if entry.valid else entry.error or "no rating could be read"
    reason = " ".join(printable(word) for word in reason.split())
    for n, line in enumerate(_wrap(draw, reason, small, CELL_PX - 24, RATIONALE_LINES)):
        draw.text((12, top + 32 + 21 * n), line, font=small, fill=MUTED if entry.valid else BAD)


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _cut(draw: ImageDraw.ImageDraw, text: str, font: _Font, width: float) -> str:
    """Return `text`, shortened with an ellipsis until it fits `width`."""
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text.rstrip(" ,.;:") + "…"


def _wrap(draw: ImageDraw.ImageDraw, text: str, font: _Font, width: float, lines: int) -> list[str]:
    """Return at most `lines` lines of `text`; the last one ends in an ellipsis where something was cut."""
    words, wrapped = text.split(), [""]
    for n, word in enumerate(words):
        longer = f"{wrapped[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width:
            wrapped[-1] = longer
        elif len(wrapped) == lines:
            rest = " ".join(words[n:])
            return [*wrapped[:-1], _cut(draw, f"{wrapped[-1]} {rest}".strip(), font, width)]
        else:
            wrapped.append(_cut(draw, word, font, width))
    return wrapped
