"""Progressive Re-sampling: how likely an image of each level of opinion scores is to be drawn for a step.

Training starts from the natural distribution of the scores and goes on to a balanced one. Scores pile up in the middle
of the scale, and a policy that always answers the middle does well on them. The purpose is Zoom-IQA's; the schedule is
ours, because its paper's schedule was out of reach.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SCHEDULES = ("linear", "step", "cosine")


@dataclass(frozen=True, kw_only=True)
class ResamplingConfig:
    """How likely an image of each level of MOS is, as training goes on."""

    levels: int = 5
    """Equal levels of 1..5; an image's chance is proportional to (images of its level) ** -alpha."""
    schedule: str = "linear"
    """How alpha goes from `start` to `end`: linear; cosine; step (at half time)."""
    start: float = 0.0
    """alpha at the beginning; 0: every image is equally likely."""
    end: float = 1.0
    """alpha at the end; 1: every level is equally likely. start=1, end=0 is the reverse; 0 and 0 switches it off."""

    def __post_init__(self) -> None:
        if self.levels < 1 or self.schedule not in SCHEDULES:
            raise ValueError(
                f"levels={self.levels} must be at least 1, schedule={self.schedule!r} one of {', '.join(SCHEDULES)}"
            )
        if not (0 <= self.start <= 1 and 0 <= self.end <= 1):
            raise ValueError(f"start={self.start}, end={self.end}: alpha lies in 0..1")

    def alpha(self, progress: float) -> float:
        """Return alpha at `progress` in 0..1.

        >>> [ResamplingConfig(schedule=name).alpha(0.25) for name in ("linear", "step")]
        [0.25, 0.0]
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress={progress}: must lie in 0..1")
        shares = {
            "linear": progress,
            "step": float(progress >= 0.5),
            "cosine": 0.5 * (1 - math.cos(math.pi * progress)),
        }
        return self.start + (self.end - self.start) * shares[self.schedule]


def level_of(mos: Sequence[float], levels: int) -> NDArray[np.int64]:
    """Return the level 0 .. levels - 1 of each MOS in 1..5; an edge belongs to the upper level, 5 to the last.

    >>> level_of([1.0, 1.8, 4.99, 5.0], 5).tolist()
    [0, 1, 4, 4]
    """
    # rounded: (1.8 - 1) / 0.8 is 0.9999999999999999 or 1, by how it is written
    shares = np.round((np.asarray(mos, dtype=np.float64) - 1) / 4 * levels, 9)
    return np.clip(shares.astype(np.int64), 0, levels - 1)


def image_chances(mos: Sequence[float], levels: int, alpha: float) -> NDArray[np.float64]:
    """Return each image's chance, proportional to (images of its level) ** -alpha; they sum to 1.

    >>> image_chances([1.0, 3.0, 3.0, 3.0], 5, 1.0).round(6).tolist()
    [0.5, 0.166667, 0.166667, 0.166667]
    """
    places = level_of(mos, levels)
    counts = np.bincount(places, minlength=levels).astype(np.float64)
    weights = counts[places] ** -alpha
    return weights / weights.sum()


def draw_images(
    mos: Sequence[float], count: int, config: ResamplingConfig, progress: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the indices of `count` different images. Raises ValueError if there are fewer."""
    if count > len(mos):
        raise ValueError(f"{count} different images per step of a data set of {len(mos)}: lower images_per_step")
    chances = image_chances(mos, config.levels, config.alpha(progress))
    return rng.choice(len(mos), size=count, replace=False, p=chances)
