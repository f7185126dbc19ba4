"""Large images in overlapping tiles, blended so that no seam is left and memory stays that of one tile.

Neighbours change over in the middle of their overlap, by a smooth ramp a quarter of it wide; nearer to a tile's inner
edge than 3/8 of the overlap nothing of it is used. So a restorer whose output depends on no more than that radius of
input gives the same image tiled and whole. One that looks further (attention, group normalisation) changes at most
smoothly. Of a stochastic one, each tile has noise of its own, and the ramp is a mean of two samples: softer there.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from restoration.restorer.rng import candidate_seed

RAMP_FRACTION = 0.25
"""Width of the change-over, of the overlap. The rest, 3/8 on each side, is margin that only feeds the network."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Sizes in pixels of the low-quality image."""

    tile_px: int
    """Longest side of a tile."""
    overlap_px: int = 32
    """Least overlap of neighbours."""

    def __post_init__(self) -> None:
        if self.overlap_px < 0 or self.tile_px < 1 or 2 * self.overlap_px > self.tile_px:
            raise ValueError(
                f"tile_px={self.tile_px}, tile_overlap_px={self.overlap_px}: the tile must be at least 1 px and twice "
                "the overlap"
            )


def starts(length: int, tiling: Tiling) -> list[int]:
    """Return where the tiles of one axis begin: evenly spread, first at 0, last ending at the edge.

    >>> starts(100, Tiling(tile_px=40, overlap_px=8))
    [0, 30, 60]
    """
    if length <= tiling.tile_px:
        return [0]
    count = math.ceil((length - tiling.overlap_px) / (tiling.tile_px - tiling.overlap_px))
    return [round(k * (length - tiling.tile_px) / (count - 1)) for k in range(count)]


def windows(length: int, tiling: Tiling, scale: int) -> list[Tensor]:
    """Return the weights of each tile along one axis of the output; over all tiles they add up to 1 everywhere."""
    begin = starts(length, tiling)
    side = min(length, tiling.tile_px)
    ramp = max(tiling.overlap_px * RAMP_FRACTION, 1e-6)
    position = (torch.arange(length * scale, dtype=torch.float64) + 0.5) / scale  # pixel centres, in input pixels
    changes = [(after + before + side) / 2 for before, after in itertools.pairwise(begin)]
    # Ramps lie apart (overlap <= tile / 2), so at most one of them is between 0 and 1 at any place.
    steps = [((position - centre) / ramp + 0.5).clamp(0, 1) for centre in changes]
    rising = [0.5 - 0.5 * torch.cos(math.pi * step) for step in steps]
    windows_ = []
    for k, first in enumerate(begin):
        weight = torch.ones_like(position)
        if k > 0:
            weight = weight * rising[k - 1]
        if k < len(begin) - 1:
            weight = weight * (1 - rising[k])
        windows_.append(weight[first * scale : (first + side) * scale].float())
    return windows_


def restore_tiled(
    restore: Callable[[Tensor, Sequence[int]], list[Tensor]], image: Tensor, seeds: Sequence[int], tiling: Tiling
) -> list[Tensor]:
    """Return what `restore(tile, seeds)` makes of the CHW image, one CHW image a seed, tile by tile.

    An image that fits one tile is restored whole, with the seeds themselves. Else tile t of seed s has the seed
    `candidate_seed(s, t)`, tiles counted row by row: the image depends on s, the sizes and nothing else.
    Memory: the output, and one tile. Raises ValueError where an output is no whole multiple of its tile.
    """
    height, width = image.shape[1:]
    tops, lefts = starts(height, tiling), starts(width, tiling)
    if len(tops) == len(lefts) == 1:
        return restore(image, seeds)
    tile_height, tile_width = min(height, tiling.tile_px), min(width, tiling.tile_px)
    total: list[Tensor] = []
    scale, rows, columns = 0, [], []
    for index, (row, column) in enumerate((r, c) for r in range(len(tops)) for c in range(len(lefts))):
        top, left = tops[row], lefts[column]
        tile = image[:, top : top + tile_height, left : left + tile_width].contiguous()
        restored = restore(tile, [candidate_seed(seed, index) for seed in seeds])
        if not total:
            scale = whole_scale(tile, restored[0])
            rows, columns = windows(height, tiling, scale), windows(width, tiling, scale)
            total = [torch.zeros(3, height * scale, width * scale) for _ in seeds]
        window = rows[row][:, None] * columns[column][None]
        for canvas, restored_tile in zip(total, restored, strict=True):
            across = slice(left * scale, (left + tile_width) * scale)
            canvas[:, top * scale : (top + tile_height) * scale, across] += window * restored_tile
    return [canvas.clamp(0, 1) for canvas in total]


def whole_scale(image: Tensor, restored: Tensor) -> int:
    """Return how many times larger `restored` is than `image`. Raises ValueError where that is no whole number."""
    scale = restored.shape[1] // image.shape[1]
    if scale < 1 or restored.shape[1:] != (image.shape[1] * scale, image.shape[2] * scale):
        raise ValueError(
            f"an image of {image.shape[2]} x {image.shape[1]} px became one of {restored.shape[2]} x "
            f"{restored.shape[1]} px: the output must be 1, 2, 3, ... times as large"
        )
    return scale
