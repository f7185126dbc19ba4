"""What all figures share: one palette, images fitted into squares without added blur, and lines with gaps.

Figures are drawn by Pillow alone, with the font that it bundles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

BACK, CARD, INK, MUTED = (22, 24, 29), (34, 37, 44), (240, 241, 243), (164, 170, 180)
LINE, GOOD, BAD, MARK = (84, 90, 102), (82, 199, 122), (232, 92, 92), (255, 176, 32)
DASH_PX = 5
"""Length of a dash, and of the gap after it."""


def fit(image: Image.Image, side_px: int) -> tuple[Image.Image, float]:
    """Return the image fitted into a square, and the factor: whole when enlarging, Lanczos when shrinking."""
    factor = side_px / max(image.size)
    if factor >= 1:
        factor = math.floor(factor)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    return (image if factor == 1 else image.resize(size, how)), factor


@dataclass(frozen=True)
class Outline:
    """How the outline of a region is drawn."""

    colour: Colour
    width: int
    is_dashed: bool = False

    def draw(self, draw: ImageDraw.ImageDraw, box: Sequence[float]) -> None:
        """Draw it around the box, on black, so that it shows on any image."""
        left, top, right, bottom = map(round, box)
        edge = self.width - 1
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0), width=self.width + 2)
        if not self.is_dashed:
            draw.rectangle((left, top, right, bottom), outline=self.colour, width=self.width)
            return
        for x in range(left, right + 1, 2 * DASH_PX):
            for y in (top, bottom - edge):
                draw.rectangle((x, y, min(x + DASH_PX - 1, right), y + edge), fill=self.colour)
        for y in range(top, bottom + 1, 2 * DASH_PX):
            for x in (left, right - edge):
                draw.rectangle((x, y, x + edge, min(y + DASH_PX - 1, bottom)), fill=self.colour)


def polyline(
    draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float] | None], colour: Colour, width: int
) -> None:
    """Draw a line through the points; None is a gap."""
    for first, second in pairwise(points):
        if first is not None and second is not None:
            draw.line((*first, *second), fill=colour, width=width)


def ticks(low: float, high: float, count: int = 4) -> list[tuple[float, str]]:
    """Return places and labels of an axis whose first and last places enclose the values; steps of 1, 2, 2.5 or 5.

    About `count` steps. A range of no length is widened. Raises ValueError for bounds that are not finite.

    >>> ticks(0.7655, 0.7673)
    [(0.7655, '0.7655'), (0.766, '0.7660'), (0.7665, '0.7665'), (0.767, '0.7670'), (0.7675, '0.7675')]
    """
    if not math.isfinite(low) or not math.isfinite(high) or low > high:
        raise ValueError(f"ticks({low}, {high}): give two finite bounds, the lower first")
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = 0.05 * abs(low) or 0.5
        low, high = low - margin, high + margin
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(round(step, digits) - step) > 1e-3 * step:  # steps of 2.5
        digits += 1
    return [(round(k * step, digits + 2), f"{k * step:.{digits}f}") for k in range(first, last + 1)]
