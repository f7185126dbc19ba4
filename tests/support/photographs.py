"""Photographs of any size, without a network: what is timed or compared must be an image with content."""

import math

from skimage import data
from torch import Tensor

from zoomiqa_reward.images.filters import resize_bicubic
from zoomiqa_reward.images.loading import load_image


def photograph(seed: int, height: int, width: int) -> Tensor:
    """Return the middle of one of three photographs, enlarged if it has fewer pixels: CHW in [0, 1].

    Random images may have no content by the rule of `images.content`; they are refused at once, which takes no time.
    """
    whole = load_image((data.astronaut, data.coffee, data.chelsea)[seed % 3]())
    factor = max(height / whole.shape[1], width / whole.shape[2], 1)
    if factor > 1:
        whole = resize_bicubic(whole, math.ceil(whole.shape[1] * factor), math.ceil(whole.shape[2] * factor))
    top, left = ((room - side) // 2 for room, side in zip(whole.shape[1:], (height, width), strict=True))
    return whole[:, top : top + height, left : left + width].contiguous()
