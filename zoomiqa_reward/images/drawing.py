"""What all figures share: one palette, images fitted into squares without added blur, and lines with gaps.

Figures are drawn by Pillow alone, with the font that it bundles.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

BACK, CARD, INK, MUTED = (22, 24, 29), (34, 37, 44), (240, 241, 243), (164, 170, 180)
LINE, GOOD, BAD, MARK = (84, 90, 102), (82, 199, 122), (232, 92, 92), (255, 176, 32)


def fit(image: Image.Image, side_px: int) -> tuple[Image.Image, float]:
    """Return the image fitted into a square, and the factor: whole when enlarging, Lanczos when shrinking."""
    factor = side_px / max(image.size)
    if factor >= 1:
        factor = math.floor(factor)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    return (image if factor == 1 else image.resize(size, how)), factor


def polyline(
    draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float] | None], colour: Colour, width: int
) -> None:
    """Draw a line through the points; None is a gap."""
    for first, second in pairwise(points):
        if first is not None and second is not None:
            draw.line((*first, *second), fill=colour, width=width)
