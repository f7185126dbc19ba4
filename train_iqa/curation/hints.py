"""Low-level hints measured on the pixels of an image, or of one region of it; no model takes part.

| hint | what is measured | source |
|---|---|---|
| brightness | mean luma (Rec. 601), 0..1 | |
| contrast | standard deviation of the luma (RMS contrast) | Peli 1990 |
| colourfulness | spread and strength of the opponent colours, 0..255 scale | Hasler and Suesstrunk 2003 |
| blocking | how much the luma's steps on an 8 px grid exceed the steps beside it | after Wang, Sheikh, Bovik 2002 |
| blur | how little a further blur changes the image, 0..1 | Crete-Roffet 2007, scikit-image's `blur_effect` |
| noise | standard deviation in weakly textured blocks, 0..1 | after Immerkaer 1996 (mask), lower quartile ours |
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import blur_effect
from torch import Tensor

from zoomiqa_reward.images.filters import LUMA

Box = tuple[float, float, float, float]
MIN_SIDE_PX = 32
"""Of what is measured: below it, neither a grid of 8 px nor weakly textured blocks can be told from content."""
_BLOCK_PX, _GRID_PX = 8, 8
_FLAT = 1e-3
"""Standard deviation (0..1) below which an image has no structure that blur or blocking could be read from."""


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What was measured; NaN where a flat image leaves nothing to measure."""

    brightness: float
    contrast: float
    colourfulness: float
    blocking: float
    blur: float
    noise: float


@dataclass(frozen=True, kw_only=True)
class ImageHints:
    """Hints of an image and of the box that an answer names."""

    whole: Hints
    box: Hints | None = None
    """None: the answer names no box."""


def measure_hints(image: Tensor, box: Box | None = None) -> Hints:
    """Return the hints of a float CHW RGB image in [0, 1], or of a box (shares of its sides) in it.

    A box below `MIN_SIDE_PX` a side is grown about its centre. Raises ValueError for an image that is smaller.
    """
    pixels = image.detach().cpu().double().numpy().transpose(1, 2, 0)
    if min(pixels.shape[:2]) < MIN_SIDE_PX:
        raise ValueError(
            f"image of {pixels.shape[1]}x{pixels.shape[0]} px: hints need at least {MIN_SIDE_PX} px per side; "
            "leave it out"
        )
    if box is not None:
        left, right = _span(box[0], box[2], pixels.shape[1])
        top, bottom = _span(box[1], box[3], pixels.shape[0])
        pixels = pixels[top:bottom, left:right]
    luma = pixels @ np.array(LUMA)
    is_flat = float(luma.std()) < _FLAT
    return Hints(
        brightness=float(luma.mean()),
        contrast=float(luma.std()),
        colourfulness=_colourfulness(pixels),
        blocking=math.nan if is_flat else (_grid_excess(luma) + _grid_excess(luma.T)) / 2,
        blur=math.nan if is_flat else float(blur_effect(luma)),
        noise=_noise(pixels),
    )


def measure_image(image: Tensor, box: Box | None) -> ImageHints:
    """Return the hints of an image and, where an answer names a box, of the box."""
    return ImageHints(whole=measure_hints(image), box=None if box is None else measure_hints(image, box))


def _span(start: float, end: float, side: int) -> tuple[int, int]:
    low, high = sorted((round(start * side), round(end * side)))
    if high - low < MIN_SIDE_PX:
        low = (low + high - MIN_SIDE_PX) // 2
        high = low + MIN_SIDE_PX
    low = max(0, min(low, side - MIN_SIDE_PX))
    return low, min(side, max(high, low + MIN_SIDE_PX))


def _colourfulness(pixels: NDArray[Any]) -> float:
    red, green, blue = (255 * pixels[..., k] for k in range(3))
    first, second = red - green, (red + green) / 2 - blue
    spread = math.hypot(float(first.std()), float(second.std()))
    return spread + 0.3 * math.hypot(float(first.mean()), float(second.mean()))


def _grid_excess(luma: NDArray[Any]) -> float:
    """Return the excess of the steps between columns on the 8 px grid, of whatever phase it shows at most.

    The phase is searched because a crop moves the grid. Means over whole columns, so edges of content hardly count.
    """
    steps = np.abs(np.diff(luma, axis=1)).mean(axis=0)
    beside = steps[1:-1] - (steps[:-2] + steps[2:]) / 2
    usual = float(steps.mean())
    if usual == 0:
        return 0.0
    return max(float(beside[phase::_GRID_PX].mean()) for phase in range(_GRID_PX)) / usual


def _noise(pixels: NDArray[Any]) -> float:
    """Return the noise's standard deviation where it is largest: in a channel, or in colour over 2 x 2 px.

    The second sees colour noise with a grain of a few pixels, which the mask of a single pixel's width does not.
    """
    red, green, blue = (pixels[..., k] for k in range(3))
    coarse = [_halved((first - second) / math.sqrt(2)) for first, second in ((red, green), (green, blue))]
    return max(*(_block_noise(plane, plane) for plane in (red, green, blue)),
               *(_block_noise(plane, _halved(green)) for plane in coarse))  # fmt: skip


def _halved(plane: NDArray[Any]) -> NDArray[Any]:
    height, width = (side // 2 * 2 for side in plane.shape)
    return plane[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))


def _block_noise(plane: NDArray[Any], level: NDArray[Any]) -> float:
    """Return the noise in blocks that hold little texture: the lower quartile over blocks of 8 px.

    Blocks without any change count too, unless `level` is clipped to black or white there, where noise cannot show.
    """
    height, width = ((side - 2) // _BLOCK_PX * _BLOCK_PX for side in plane.shape)
    shape = (height // _BLOCK_PX, _BLOCK_PX, width // _BLOCK_PX, _BLOCK_PX)
    # Immerkaer's 3 x 3 mask is the second difference along both axes
    response = np.abs(np.diff(np.diff(plane, n=2, axis=0), n=2, axis=1))[:height, :width]
    noise = response.reshape(shape).mean(axis=(1, 3)) * math.sqrt(math.pi / 2) / 6
    mean = level[1 : 1 + height, 1 : 1 + width].reshape(shape).mean(axis=(1, 3))
    is_open = (mean > 0.02) & (mean < 0.98)
    return float(np.quantile(noise[is_open] if is_open.any() else noise, 0.25))
