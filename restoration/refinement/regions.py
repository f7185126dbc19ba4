"""Which pixels are restored again, and how they are put into the picture without a seam.

The region is cut out of the low-quality picture with context around it, so that the restorer sees what it borders on.
Inside the region the new pixels replace the old ones; outside, they fade into them by a raised cosine, over before the
outer 3/8 of the context, of which nothing is used. So a restorer whose output depends on no more than that radius of
input gives there what it would give of the whole picture, and one that looks further changes smoothly.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from restoration.restorer.tiling import whole_scale
from zoomiqa_reward.model.turns import PixelBox

CONTEXT_LQ_PX = 16
"""Least context on each side, in pixels of the low-quality picture, except at the picture's own border."""
MIN_CROP_LQ_PX = 64
"""Shortest side that a restorer is given, where the picture has it: diffusion models make little of a smaller one."""
FADE_LQ_PX = (2.0, 10.0)
"""Distances from the region at which the fade begins and ends: the context less its outer 3/8."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A part of the low-quality picture, in its pixels: (left, top, right, bottom)."""

    box: PixelBox
    """What was asked for."""
    crop: PixelBox
    """What is restored: the box with its context."""

    @classmethod
    def around(cls, box: PixelBox, image_lq: Tensor) -> "Region":
        """Return the region of a box inside a CHW picture. Raises ValueError for an empty box, or one outside."""
        height, width = image_lq.shape[1:]
        left, top, right, bottom = box
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(f"box {box}: must hold a pixel, and lie in the picture of {width} x {height} px")
        (x0, x1), (y0, y1) = _with_context(left, right, width), _with_context(top, bottom, height)
        return cls(box=box, crop=(x0, y0, x1, y1))

    def cut(self, image: Tensor, scale: int = 1) -> Tensor:
        """Return the crop out of a CHW picture that is `scale` times larger than the low-quality one."""
        left, top, right, bottom = (side * scale for side in self.crop)
        return image[:, top:bottom, left:right].contiguous()

    def weights(self, scale: int) -> Tensor:
        """Return the share of the new pixels in the crop, [height, width] float32: 1 in the box, fading around it."""
        left, top, right, bottom = self.box
        across = _fade(self.crop[0], self.crop[2], left, right, scale)
        down = _fade(self.crop[1], self.crop[3], top, bottom, scale)
        return down[:, None] * across[None]

    def blended(self, picture: Tensor, patch: Tensor, image_lq: Tensor) -> Tensor:
        """Return the CHW `picture` with the restored crop `patch` faded in; what lies outside keeps its bits.

        Raises ValueError where either is not as many times larger as the other.
        """
        scale = whole_scale(image_lq, picture)
        old = self.cut(picture, scale)
        if patch.shape != old.shape:
            raise ValueError(
                f"the region came back as {patch.shape[2]} x {patch.shape[1]} px where {old.shape[2]} x "
                f"{old.shape[1]} px were expected: the restorer must enlarge parts as it enlarges the whole"
            )
        left, top, right, bottom = (side * scale for side in self.crop)
        found = picture.clone()
        found[:, top:bottom, left:right] = old + self.weights(scale) * (patch - old)
        return found


def _with_context(start: int, end: int, length: int) -> tuple[int, int]:
    """Return the span with its context, as long as it should be wherever it lies.

    >>> _with_context(40, 60, 200), _with_context(0, 20, 200), _with_context(40, 60, 50)
    ((18, 82), (0, 64), (0, 50))
    """
    wanted = min(max(end - start + 2 * CONTEXT_LQ_PX, MIN_CROP_LQ_PX), length)
    first = min(max((start + end - wanted) // 2, 0), length - wanted)
    return first, first + wanted


def _fade(first: int, last: int, start: int, end: int, scale: int) -> Tensor:
    place = first + (torch.arange((last - first) * scale, dtype=torch.float64) + 0.5) / scale  # centres, in LR pixels
    outside = torch.maximum(start - place, place - end).clamp(min=0)
    begins, ends = FADE_LQ_PX
    step = ((outside - begins) / (ends - begins)).clamp(0, 1)
    return (0.5 + 0.5 * torch.cos(math.pi * step)).float()
