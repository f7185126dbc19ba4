"""Regions from a quality map: the worst view that was not tried yet, in pixels of the low-quality image."""

from collections.abc import Collection
from dataclasses import replace

from restoration.refinement.regions import ZoomRequest
from zoomiqa_reward.model.quality_map import QualityMap
from zoomiqa_reward.model.turns import PixelBox

TIE = 0.01
"""A view this little below the best one is as good: the margin within which `rank` sees ties."""
NOTHING_WORSE = "no view of the quality map is left that is worse than the best one"


def worst_view(
    quality: QualityMap, refused: Collection[PixelBox | None], scale: int, words: ZoomRequest
) -> ZoomRequest:
    """Return `words` with the box of the worst view of the map, without those `refused`; no box where none is worse.

    The map is that of an image `scale` times larger than the low-quality one; boxes are rounded outwards to its pixels.
    An unreadable answer does not matter here, because the region does not come from it.
    """
    request = replace(words, box=None, is_central=False, error=None)
    ratings = quality.ratings.mean.tolist()
    order = sorted((index for index, ok in enumerate(quality.ratings.valid.tolist()) if ok), key=ratings.__getitem__)
    for index in order:
        left, top, right, bottom = quality.boxes[index]
        box = left // scale, top // scale, -(-right // scale), -(-bottom // scale)
        if ratings[index] > ratings[order[-1]] - TIE:
            break
        if box not in refused:
            return replace(request, box=box, rating=ratings[index])
    return request
