"""One card of a contact sheet: the image, an enlarged detail of it, and the caption."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from zoomiqa_reward.images.drawing import BAD, CARD, GOOD, INK, MARK, MUTED, Colour, Outline
from zoomiqa_reward.images.lettering import draw_text, text_width, wrap
from zoomiqa_reward.images.sheet_entry import SheetEntry
from zoomiqa_reward.model.turns import PixelBox

CELL_PX = 384
"""Width of a card, and the longest side of the image in it."""
DETAIL_PX = 128
"""Height of the detail."""
PAD_PX, GAP_PX = 12, 4
HEAD_SIZE, NAME_SIZE, TEXT_SIZE = 19, 16, 14
RATIONALE_LINES, NOTE_LINES, NAME_LINES = 6, 3, 12
NAMED = Outline(MARK, 2, is_dashed=True)
"""Of the region that the model named."""
LOOKED_AT = Outline(MARK, 2)
"""Of the region that it looked at again."""
DETAILED = Outline((255, 255, 255), 1)
"""Of the detail."""


@dataclass(frozen=True)
class Shown:
    """An image as its card needs it: shrunk where it is larger than the card, and a piece of it at its own pixels."""

    size: tuple[int, int]
    """Of the image itself."""
    small: Image.Image
    detail: Image.Image
    corner: tuple[int, int]
    """Where the detail lies in the image."""


def look_at(image: Image.Image, centre: tuple[float, float]) -> Shown:
    """Return what is kept of an image. centre: the middle of its detail, as fractions."""
    rgb = image.convert("RGB")
    width, height = min(CELL_PX // 2, rgb.width), min(DETAIL_PX // 2, rgb.height)
    left = min(max(round(centre[0] * rgb.width - width / 2), 0), rgb.width - width)
    top = min(max(round(centre[1] * rgb.height - height / 2), 0), rgb.height - height)
    return Shown(
        size=rgb.size, small=scaled(rgb, min(CELL_PX / max(rgb.size), 1.0)),
        detail=rgb.crop((left, top, left + width, top + height)), corner=(left, top),
    )  # fmt: skip


def scaled(image: Image.Image, factor: float) -> Image.Image:
    """Return the image enlarged by a whole number without blur, or shrunk by Lanczos."""
    if factor == 1:
        return image
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)


def fitted(shown: Shown, scale: float) -> Image.Image:
    """Return the image at its scale."""
    size = max(1, round(shown.size[0] * scale)), max(1, round(shown.size[1] * scale))
    if shown.small.size == size:
        return shown.small
    return shown.small.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def scale_of(sizes: Sequence[tuple[int, int]]) -> float:
    """Return the largest factor that fits images of these sizes into a card; whole where it enlarges."""
    factor = CELL_PX / max(max(size) for size in sizes)
    return float(math.floor(factor)) if factor >= 1 else factor


def draw_image(card: Image.Image, shown: Shown | None, entry: SheetEntry, scale: float, height: int) -> None:
    """Draw the image into the upper `height` px, with the regions that the model named and looked at."""
    draw = ImageDraw.Draw(card)
    if shown is None:
        draw.line((0, 0, CELL_PX, height), fill=MUTED)
        draw.line((0, height, CELL_PX, 0), fill=MUTED)
        return
    whole = fitted(shown, scale)
    left, top = (CELL_PX - whole.width) // 2, (height - whole.height) // 2
    card.paste(whole, (left, top))

    def outline(box: Sequence[float], how: Outline) -> None:
        how.draw(draw, [(left, top)[i % 2] + value * scale for i, value in enumerate(box)])

    if entry.bbox is not None and entry.bbox[2] > entry.bbox[0] and entry.bbox[3] > entry.bbox[1]:
        outline([value * side for value, side in zip(entry.bbox, shown.size * 2, strict=True)], NAMED)
    if entry.crop_box is not None:
        outline(entry.crop_box, LOOKED_AT)
    if has_detail(scale):
        outline(_detail_box(shown, scale), DETAILED)


def has_detail(scale: float) -> bool:
    """Return whether a detail shows more than the image: not where every pixel is already drawn 2 x 2 or larger."""
    return scale < 2


def detail_factor(scale: float) -> int:
    """Return by how much a detail is enlarged."""
    return max(2, math.ceil(2 * scale))


def draw_detail(card: Image.Image, shown: Shown | None, scale: float, top: int) -> None:
    """Draw the detail below the image."""
    if shown is None:
        return
    left, upper, right, lower = (
        int(value) - offset for value, offset in zip(_detail_box(shown, scale), shown.corner * 2, strict=True)
    )
    large = scaled(shown.detail.crop((left, upper, right, lower)), detail_factor(scale))
    card.paste(large, ((CELL_PX - large.width) // 2, top + (DETAIL_PX - large.height) // 2))


def _detail_box(shown: Shown, scale: float) -> PixelBox:
    factor = detail_factor(scale)
    width, height = (
        min(side, room // factor) for side, room in zip(shown.detail.size, (CELL_PX, DETAIL_PX), strict=True)
    )
    left = shown.corner[0] + (shown.detail.width - width) // 2
    top = shown.corner[1] + (shown.detail.height - height) // 2
    return left, top, left + width, top + height


@dataclass(frozen=True)
class Caption:
    """The lines under an image, and how high they are together."""

    lines: tuple[tuple[str, int, Colour, int, int], ...]
    """Text, size, colour, left and top."""
    height: int


def caption(entry: SheetEntry, head: str, numbers: Sequence[str], remark: str) -> Caption:
    """Return the caption: place and numbers, the whole name, the note, and the reason or the error."""
    is_best = head == "#1" or head.startswith("#1-")
    colour = GOOD if is_best else INK if entry.valid else BAD
    lines: list[tuple[str, int, Colour, int, int]] = []
    width, top = CELL_PX - 2 * PAD_PX, PAD_PX - 2

    def add(texts: Sequence[str], size: int, colour: Colour) -> None:
        nonlocal top
        for text in texts:
            lines.append((text, size, colour, PAD_PX, top))
            top += round(1.35 * size)
        top += GAP_PX if texts else 0

    room = width - text_width(head, HEAD_SIZE) - PAD_PX
    if all(text_width(text, HEAD_SIZE) <= room for text in numbers):  # on the right, beside the place
        for k, text in enumerate(numbers):
            left = round(CELL_PX - PAD_PX - text_width(text, HEAD_SIZE))
            lines.append((text, HEAD_SIZE, colour, left, top + k * round(1.35 * HEAD_SIZE)))
        below = len(numbers) * round(1.35 * HEAD_SIZE) + top
        add([head] if head else [], HEAD_SIZE, colour)
        top = max(top, below)
    else:
        add([head, *(line for text in numbers for line in wrap(text, HEAD_SIZE, width))], HEAD_SIZE, colour)
    add(wrap(entry.name, NAME_SIZE, width, NAME_LINES), NAME_SIZE, INK)
    add(wrap(". ".join(text for text in (remark, entry.note) if text), TEXT_SIZE, width, NOTE_LINES), TEXT_SIZE, MUTED)
    reason = entry.rationale if entry.valid else entry.error or "no rating could be read"
    add(wrap(reason, TEXT_SIZE, width, RATIONALE_LINES), TEXT_SIZE, INK if entry.valid else BAD)
    return Caption(tuple(lines), top + PAD_PX - GAP_PX)


def draw_caption(card: Image.Image, words: Caption, top: int) -> None:
    """Draw the lines below `top`."""
    draw = ImageDraw.Draw(card)
    for text, size, colour, left, below in words.lines:
        draw_text(draw, (left, top + below), text, size, colour)


def empty_card(height: int) -> Image.Image:
    """Return a card without content."""
    return Image.new("RGB", (CELL_PX, height), CARD)


Opener = Image.Image | None | Callable[[], Image.Image | None]
"""An image, a function that opens one, or None for an image that could not be read."""
