"""Flicker: what a frame shows that neither the frame before nor the one after shows.

For every pixel of the small grey copy: how far its level lies outside the range of the two neighbours in time. Motion,
a fade and a cut go from one level to the other and stay inside that range, so they count nothing; a restoration that
is brighter in every second frame counts in full. This is the project's own measure, in percent of the grey range. It
sees no flicker that is finer than the small copy's pixels, and none slower than three frames.
"""

import math

import numpy as np
from numpy.typing import NDArray


class FlickerMeter:
    """Takes the small copies of all frames in order; holds two of them, and one sum per second."""

    def __init__(self) -> None:
        self._recent: list[tuple[float, NDArray[np.float32]]] = []
        self._sums: dict[int, tuple[float, int]] = {}

    def add(self, time_s: float, small: NDArray[np.float32]) -> None:
        """Take the next frame; the one before it is then measured."""
        self._recent.append((time_s, small))
        if len(self._recent) < 3:
            return
        (_, before), (middle_s, middle), (_, after) = self._recent
        if before.shape == middle.shape == after.shape:
            low, high = np.minimum(before, after), np.maximum(before, after)
            outside = np.maximum(middle - high, 0) + np.maximum(low - middle, 0)
            total, count = self._sums.get(int(middle_s), (0.0, 0))
            self._sums[int(middle_s)] = (total + 100 * float(outside.mean()), count + 1)
        del self._recent[0]

    @property
    def mean(self) -> float:
        """Mean over frames, 0..100; NaN with fewer than three frames."""
        count = sum(count for _, count in self._sums.values())
        return sum(total for total, _ in self._sums.values()) / count if count else math.nan

    @property
    def worst(self) -> tuple[int, float] | None:
        """The second (from its start) with the most flicker, and its mean."""
        means = {second: total / count for second, (total, count) in self._sums.items()}
        return max(means.items(), key=lambda item: item[1], default=None)
