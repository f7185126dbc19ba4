"""Batches of images of any kind: taken apart without loading, and loaded one at a time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from zoomiqa_reward.images.loading import ImageError, load_image


def split_images(images: Any) -> list[Any]:
    """Return the sources of a batch, unloaded: a list's items, a BCHW tensor's or NHWC array's images, or the one."""
    if isinstance(images, list | tuple):
        return list(images)
    if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
        return list(images)
    return [images]


def load_each(images: Any) -> Iterator[Tensor]:
    """Yield each image when it is its turn: a thousand paths are not held in memory at once."""
    sources = split_images(images)
    for index, source in enumerate(sources):
        try:
            yield load_image(source)
        except ImageError as error:
            raise error if len(sources) == 1 else ImageError(f"image {index}: {error}") from error
