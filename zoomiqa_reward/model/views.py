"""Which views of an image `direct` reads: the whole as the processor resizes it, native tiles, other scales.

The processor silently resizes to multiples of patch x merge (512 px becomes 504), which changes the very detail that
is to be judged. Tiles are cut so that nothing is resampled at scale 1, and their sizes depend on the image alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from zoomiqa_reward.model.pixels import whole_size
from zoomiqa_reward.model.repeatable import resized
from zoomiqa_reward.protocol.spec import ViewPolicy

VIEWS_RULE = 2
"""Raised with every change of how an image is cut into views: ratings change with it, so it is part of fingerprints."""
KEPT_SHARE = 0.97
"""Of a side, what must be left where its rest is cut off."""
CHUNK_PIXELS = 1 << 20
"""Pixels read in one forward pass, unless a single view is larger: this bounds memory, whatever the image's size."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One view of one image; no pixels yet."""

    scale: float | None
    """Scale that the tile is cut from; None: the whole image, which the processor resizes."""
    top: int
    left: int
    size: tuple[int, int]
    """(height, width) as the model sees it."""
    weight: float
    """Share in the image's rating; a plan's weights sum to 1."""


def scaled(length: int, scale: float, factor: int) -> int:
    """Return a side at a scale: as it is at 1, else resampled to whole tokens, so that tiles need not overlap.

    >>> scaled(256, 1.0, 28), scaled(256, 0.5, 28), scaled(20, 0.5, 28)
    (256, 140, 0)
    """
    return length if scale == 1.0 else round(length * scale / factor) * factor


def trimmed(length: int, factor: int) -> int:
    """Return the multiple of `factor` that a side is read as without resampling: the rest is cut off at both edges.

    Where that would cut off more than a share of `1 - KEPT_SHARE`, the side stays as it is.

    >>> trimmed(512, 28), trimmed(100, 28), trimmed(20, 28)
    (504, 100, 20)
    """
    rest = length % factor
    return length - rest if length - rest >= KEPT_SHARE * length else length


def spans(length: int, longest: int, factor: int) -> tuple[list[int], int]:
    """Return the offsets and the side of the fewest equal spans that cover the trimmed `length`, evenly spread.

    The side is a multiple of `factor`, at most `longest` (one too) and at most `length`.

    >>> spans(500, 336, 28), spans(700, 336, 28), spans(256, 336, 28), spans(100, 336, 28)
    (([0, 248], 252), ([0, 224, 448], 252), ([2], 252), ([0, 44], 56))
    """
    covered = trimmed(length, factor)
    count = -(-covered // min(longest, length // factor * factor))
    side = -(-covered // (count * factor)) * factor
    first = max(0, length - count * side) // 2
    last = min(length - side, first + (count - 1) * side)
    return [first + i * (last - first) // max(1, count - 1) for i in range(count)], side


def nearest_shares(offsets: Sequence[int], side: int, length: int) -> list[float]:
    """Return for each span the share of `length` that is nearer to its centre than to any other's; sums to 1.

    >>> nearest_shares([0, 164], 336, 500)
    [0.5, 0.5]
    """
    middles = [(a + b + side) / 2 for a, b in pairwise(offsets)]
    edges = [0.0, *middles, float(length)]
    return [(b - a) / length for a, b in pairwise(edges)]


def plan_views(
    height: int, width: int, policy: ViewPolicy, *, factor: int, min_pixels: int, max_pixels: int
) -> list[View]:
    """Return the views of an image of this size; their weights sum to 1.

    An image whose sides are multiples of `factor`, but for less than `1 - KEPT_SHARE` of them, is its own native view
    where the processor's budget allows: it is read once, without its rest and not resampled, with the weights of both.
    A scale at which the shorter side falls below `min_side_px` (or below one token) is left out and the rest
    renormalised; an image too small for every scale is read whole, which the processor enlarges.
    Raises ImageError for an aspect ratio above 200.
    """
    whole = whole_size(height, width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels)
    native = trimmed(height, factor), trimmed(width, factor)
    is_native = not any(side % factor for side in native) and min_pixels <= native[0] * native[1] <= max_pixels
    tile = max(factor, policy.tile_px // factor * factor)
    whole_weight = policy.whole_weight
    by_scale: list[tuple[float, float, int, int]] = []  # scale, weight, height, width
    for scale, weight in zip(policy.scales, policy.weights, strict=True):
        at_height, at_width = scaled(height, scale, factor), scaled(width, scale, factor)
        if scale == 1.0 and is_native:
            whole_weight += weight
        elif min(at_height, at_width) >= max(policy.min_side_px, factor) and weight > 0:
            by_scale.append((scale, weight, at_height, at_width))
    total = whole_weight + sum(weight for _, weight, _, _ in by_scale)
    if total == 0:
        whole_weight = total = 1.0

    views = []
    if whole_weight > 0 and is_native and (height, width) != native:
        top, left = (height - native[0]) // 2, (width - native[1]) // 2
        views.append(View(scale=1.0, top=top, left=left, size=native, weight=whole_weight / total))
    elif whole_weight > 0:
        views.append(View(scale=None, top=0, left=0, size=whole, weight=whole_weight / total))
    for scale, weight, at_height, at_width in by_scale:
        (tops, tall), (lefts, wide) = (spans(side, tile, factor) for side in (at_height, at_width))
        for top, share_y in zip(tops, nearest_shares(tops, tall, at_height), strict=True):
            for left, share_x in zip(lefts, nearest_shares(lefts, wide, at_width), strict=True):
                share = weight / total * share_y * share_x
                views.append(View(scale=scale, top=top, left=left, size=(tall, wide), weight=share))
    return views


class ViewCutter:
    """Cuts views out of one image, each other scale resized once. Keeps autograd; copies nothing at scale 1."""

    def __init__(self, image: Tensor, factor: int) -> None:
        self.image, self.factor = image, factor
        self._scaled: dict[float, Tensor] = {1.0: image}

    def cut(self, view: View) -> Tensor:
        """Return the view's pixels, CHW; the whole image comes unresized, the processor does that."""
        if view.scale is None:
            return self.image
        if view.scale not in self._scaled:
            height, width = (scaled(side, view.scale, self.factor) for side in self.image.shape[1:])
            self._scaled[view.scale] = resized(self.image, height, width)
        height, width = view.size
        return self._scaled[view.scale][:, view.top : view.top + height, view.left : view.left + width]


Task = tuple[int, View]
"""(index of the image, view)"""


def chunks(tasks: Sequence[Task], chunk_pixels: int = CHUNK_PIXELS) -> Iterator[list[Task]]:
    """Yield the tasks in groups of one size, at most `chunk_pixels` each.

    One view larger than that is a group of its own. Groups depend on the tasks alone, so those of a single image
    are the same in any company.
    """
    by_size: dict[tuple[int, int], list[Task]] = {}
    for task in tasks:
        by_size.setdefault(task[1].size, []).append(task)
    for (height, width), group in by_size.items():
        step = max(1, chunk_pixels // (height * width))
        for start in range(0, len(group), step):
            yield group[start : start + step]
