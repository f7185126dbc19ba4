"""The rounds of a refinement as a strip of images, from the low-quality one to the last try.

Above, each whole image with the region that was restored again; below, the middle of that region at the result's own
pixels, in a round before and after it. Details are enlarged by whole numbers, so that the strip adds no blur.
"""

import math
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from restoration.refinement.records import Round
from zoomiqa_reward.images.drawing import BACK, BAD, CARD, GOOD, INK, MARK, MUTED, Colour, fit
from zoomiqa_reward.images.lettering import draw_text, text_width, wrap
from zoomiqa_reward.images.loading import to_pil
from zoomiqa_reward.model.turns import PixelBox

if TYPE_CHECKING:
    from restoration.refinement.result import Refined

CELL_PX = 320
"""Side of the square that a whole image is fitted into; also the width of its detail."""
DETAIL_PX = 158
"""Height of a detail, and the width of one of the two in a round."""
CAPTION_PX = 22
"""Height of the line above a detail."""
DETAIL_TOP = CELL_PX + CAPTION_PX
TEXT_PX = 134
MARGIN_PX = 14
LINES = 4
FOOTER_LINE_PX = 20
MEANING = "LR-consistency: how well an image that is made small again agrees with the low-quality one."


def strip_of(result: "Refined") -> Image.Image:
    """Return the strip as an RGB image: low-quality image, start, and one column for each round with an image."""
    shown = [round_ for round_ in result.history if round_.has_image()]
    low = to_pil(result.image_lq)
    regions = [round_.region for round_ in shown if round_.region is not None]
    first = regions[0] if regions else _central(low.size)
    cards = [_low_card(low, shown[0].image.size, first, has_region=bool(regions))]
    before: Image.Image | None = None
    for round_ in shown:
        image = round_.image
        cards.append(_card(round_, image, before, low.width, round_.region or first))
        if round_.accepted:
            before = image
    width = len(cards) * (CELL_PX + MARGIN_PX) + MARGIN_PX
    lines = wrap(f"Stopped: {result.ending}. {MEANING}", 14, width - 2 * MARGIN_PX)
    below = cards[0].height + 2 * MARGIN_PX
    strip = Image.new("RGB", (width, below + FOOTER_LINE_PX * len(lines) + 8), BACK)
    for index, card in enumerate(cards):
        strip.paste(card, (MARGIN_PX + index * (CELL_PX + MARGIN_PX), MARGIN_PX))
    for index, line in enumerate(lines):
        draw_text(ImageDraw.Draw(strip), (MARGIN_PX, below - 2 + FOOTER_LINE_PX * index), line, 14, MUTED)
    return strip


def _low_card(low: Image.Image, size: tuple[int, int], region: PixelBox, *, has_region: bool) -> Image.Image:
    scale = size[0] // low.width
    card = _empty_card()
    large = low.resize(size, Image.Resampling.NEAREST)
    _paste_whole(card, large, _times(region, scale) if has_region else None)
    _paste_detail(card, large, _times(region, scale), 0, CELL_PX)
    _write(card, "low-quality image", INK, f"{low.width} x {low.height} px", "what is restored")
    return card


def _card(
    round_: Round, image: Image.Image, before: Image.Image | None, width_lq: int, region: PixelBox
) -> Image.Image:
    scale = image.width // width_lq
    card = _empty_card()
    box = _times(region, scale)
    _paste_whole(card, image, None if round_.region is None else box)
    if before is None or round_.region is None:
        _paste_detail(card, image, box, 0, CELL_PX)
    else:
        for caption, detailed, at in (("before", before, 0), ("after", image, CELL_PX - DETAIL_PX)):
            _paste_detail(card, detailed, box, at, DETAIL_PX)
            left = at + (DETAIL_PX - text_width(caption, 14)) / 2
            draw_text(ImageDraw.Draw(card), (left, CELL_PX + 4), caption, 14, MUTED)
    title = "start" if round_.number == 0 else f"round {round_.number}: {'kept' if round_.accepted else 'refused'}"
    colour = INK if round_.number == 0 else GOOD if round_.accepted else BAD
    numbers = f"reward {_shown(round_.reward, 3)}, LR-consistency {_shown(round_.lr_consistency, 2)} dB"
    _write(card, title, colour, numbers, round_.reason)
    return card


def _empty_card() -> Image.Image:
    return Image.new("RGB", (CELL_PX, DETAIL_TOP + DETAIL_PX + TEXT_PX), CARD)


def _paste_whole(card: Image.Image, image: Image.Image, box: PixelBox | None) -> None:
    shown, factor = fit(image, CELL_PX)
    left, top = (CELL_PX - shown.width) // 2, (CELL_PX - shown.height) // 2
    card.paste(shown, (left, top))
    if box is not None:
        x0, y0, x1, y1 = (value * factor + (left, top)[k % 2] for k, value in enumerate(box))
        # Widest first; a line of its own colour on either side shows on any image. A speck still has an outline.
        outline = (x0, y0, max(x1 - 1, x0 + 1), max(y1 - 1, y0 + 1))
        draw = ImageDraw.Draw(card)
        draw.rectangle(outline, outline=(0, 0, 0), width=4)
        draw.rectangle(outline, outline=MARK, width=2)


def _paste_detail(card: Image.Image, image: Image.Image, box: PixelBox, at: int, width: int) -> None:
    """Paste the middle of the box, as much as fits, twice as large where the box leaves room for it."""
    left, top, right, bottom = box
    factor = 2 if 2 * (right - left) <= width or 2 * (bottom - top) <= DETAIL_PX else 1
    wide, high = min(right - left, width // factor), min(bottom - top, DETAIL_PX // factor)
    x, y = left + (right - left - wide) // 2, top + (bottom - top - high) // 2
    detail = image.crop((x, y, x + wide, y + high)).resize((wide * factor, high * factor), Image.Resampling.NEAREST)
    card.paste(detail, (at + (width - detail.width) // 2, DETAIL_TOP + (DETAIL_PX - detail.height) // 2))


def _write(card: Image.Image, title: str, colour: Colour, numbers: str, reason: str) -> None:
    draw, top = ImageDraw.Draw(card), DETAIL_TOP + DETAIL_PX + 6
    draw_text(draw, (10, top), title, 18, colour)
    draw_text(draw, (10, top + 28), numbers, 14, INK)
    for k, line in enumerate(wrap(reason, 13, CELL_PX - 20, LINES)):
        draw_text(draw, (10, top + 50 + 18 * k), line, 13, MUTED)


def _central(size: tuple[int, int]) -> PixelBox:
    width, height = size
    return width // 4, height // 4, max(3 * width // 4, width // 4 + 1), max(3 * height // 4, height // 4 + 1)


def _times(box: PixelBox, scale: int) -> PixelBox:
    return box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale


def _shown(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"
