"""Images loaded ahead: while the model reads some, a thread decodes the next files."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from zoomiqa_reward.images.loading import ImageError, ImageSources, load_each, load_image, split_images
from zoomiqa_reward.model.numerics import canonical

AHEAD = 2
"""Files decoded before it is their turn: more memory for images, not more speed, since the model is the slower part."""


def load_ahead(images: ImageSources) -> Iterator[Tensor]:
    """Yield each image as `load_each` does; files are decoded up to `AHEAD` before their turn, in a thread.

    A file that cannot be read raises ImageError at its turn, after the images before it.
    """
    sources = split_images(images)
    if len(sources) < 2 or not any(isinstance(source, str | os.PathLike) for source in sources):
        yield from load_each(images)
        return
    load = canonical(load_image)  # autocast, default dtype and default device belong to a thread
    with ThreadPoolExecutor(1, thread_name_prefix="zoomiqa-load") as pool:
        waiting: deque[Future[Tensor]] = deque()
        try:
            for index in range(len(sources)):
                while len(waiting) <= AHEAD and index + len(waiting) < len(sources):
                    waiting.append(pool.submit(load, sources[index + len(waiting)]))
                try:
                    yield waiting.popleft().result()
                except ImageError as error:
                    raise ImageError(f"image {index}: {error}") from error
        finally:
            for future in waiting:
                future.cancel()
