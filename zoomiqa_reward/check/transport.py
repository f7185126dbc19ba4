"""What happens to scores on the way to a reward server: the same images, sent as others send them.

A shift of all scores by the same amount harms no ranking. What does is a change that differs from candidate to
candidate and is not small beside what tells them apart.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from zoomiqa_reward.check.ladders import DETAIL, Pool, reduce, through_png
from zoomiqa_reward.check.scoring import CheckScorer
from zoomiqa_reward.images.filters import through_jpeg

JPEG_QUALITY = 75
"""Pillow's default, so what code that names no quality sends."""
RESIZE_FACTOR = 8 / 7
"""256 px to 224 px, the usual input of image classifiers."""


@dataclass(frozen=True, kw_only=True)
class Transport:
    """One way of sending an image."""

    name: str
    send: Callable[[Tensor], Tensor]
    changes_size: bool = False


TRANSPORTS = (
    Transport(name="png", send=through_png),
    Transport(name=f"jpeg {JPEG_QUALITY}", send=lambda image: through_jpeg(image, JPEG_QUALITY)),
    Transport(name="resize 7/8", send=lambda image: reduce(image, RESIZE_FACTOR), changes_size=True),
)


def sent_scores(pool: Pool, scorer: CheckScorer) -> dict[str, tuple[float, ...]]:
    """Return the values of the `detail` ladder by transport; a resized image is compared with a resized reference."""
    return {
        way.name: tuple(
            scorer(
                [way.send(image) for image in pool.ladders[DETAIL]],
                pool,
                hr=way.send(pool.hr) if way.changes_size else None,
            )
        )
        for way in TRANSPORTS
    }
