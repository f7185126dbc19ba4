"""One image of several: each region from the candidates that are rated best there, in agreement with the input.

The ratings of a view become weights by softmax, and the weights of overlapping views are blended like a quality map: a
view weighs most at its centre and falls linearly to its edges. So weights have no steps, are 0 or more, and add up to 1
at every pixel; the image is their weighted mean.

A mean of candidates that agree with the low-quality image agrees about as well, not always. Back-projection
(`restorer/agreement.py`) is repeated until the 8-bit image agrees at least as well as asked.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from restoration.metrics.fidelity import lr_consistency
from restoration.restorer.agreement import AGREEMENT_PX, agreeing
from zoomiqa_reward.images.loading import load_image, to_pil
from zoomiqa_reward.model.quality_map import blend
from zoomiqa_reward.model.turns import PixelBox

SOFT_STEPS, HARD_STEPS = 4, 12
"""Back-projections with a blurred correction, then with an exact one, which also takes over the input's noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Blend:
    """A blended image."""

    image: Tensor
    """[3, height, width] float32 in [0, 1], with the 256 values that 8 bits have."""
    lr_consistency: float
    """Of the 8-bit image, dB."""
    back_projections: int
    agrees: bool
    """Whether `lr_consistency` is at least `floor_db`."""


def view_weights(ratings: Tensor, scores: Sequence[float], softness: float) -> Tensor:
    """Return the weight of each candidate in each view: softmax of the ratings over `softness`. Columns add up to 1.

    ratings: [candidates, views]; NaN where a view was not rated. A candidate without a rating where another one has one
    has lost what is there, and gets 0. Where none has one, as in clear sky, the scores of the whole images decide.

    >>> view_weights(torch.tensor([[3.0, 1.0], [1.0, math.nan]]), [1.0, 1.0], softness=10.0).mul(100).round().tolist()
    [[55.0, 100.0], [45.0, 0.0]]
    """
    whole = torch.as_tensor(list(scores), dtype=ratings.dtype)[:, None].expand_as(ratings)
    is_empty = ratings.isnan().all(dim=0, keepdim=True)
    strength = torch.where(is_empty, whole, ratings.nan_to_num(nan=-math.inf))
    return (strength / softness).softmax(dim=0)


def pixel_weights(weights: Tensor, boxes: tuple[PixelBox, ...], height: int, width: int) -> Tensor:
    """Return [candidates, height, width] of the weights of views: smooth, and 1 in sum at every pixel.

    >>> maps = pixel_weights(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), ((0, 0, 4, 2), (2, 0, 6, 2)), 2, 6)
    >>> maps[0, 0].tolist(), bool(torch.allclose(maps.sum(dim=0), torch.ones(2, 6)))
    ([1.0, 1.0, 0.75, 0.25, 0.0, 0.0], True)
    """
    return torch.stack([blend(row, boxes, height, width) for row in weights])


def blended(images: Sequence[Tensor], weights: Tensor, image_lq: Tensor, floor_db: float) -> Blend:
    """Return the weighted mean of CHW images, projected back until it agrees with `image_lq` by `floor_db` or more.

    weights: [candidates, height, width]. `agrees` is False if no number of steps reached it, or the input is too small
    for LR-consistency.
    """
    stack = torch.stack([image.float() for image in images])
    image = (stack * weights[:, None].to(stack)).sum(dim=0)
    for step in range(SOFT_STEPS + HARD_STEPS + 1):
        if step:
            blur_px = AGREEMENT_PX if step <= SOFT_STEPS else 0.0
            image = agreeing(image[None], image_lq[None], blur_px)[0]
        image = image.clamp(0, 1)
        stored = load_image(to_pil(image))
        value = lr_consistency(stored, image_lq)
        if value >= floor_db or math.isnan(value):
            break
    return Blend(image=stored, lr_consistency=value, back_projections=step, agrees=value >= floor_db)
