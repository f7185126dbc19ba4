"""Which frames are rated: the first one, one after each step of time, and one wherever the content has changed.

Both rules look at the last chosen frame, so one pass is enough and a choice depends on the clip alone. A cut changes
everything at once, and a pan or a dissolve little by little; both raise the mean difference between the small grey copy
and that of the last chosen frame. A share of the time step must have passed since that frame; otherwise every frame of
a flashing clip would be rated.
"""

import numpy as np
from numpy.typing import NDArray

LEAST_STEP_S = 1.0
MOST_STEPS = 300
"""Steps of time in a clip whose step is not given: longer than five minutes, it grows."""
CHANGE = 0.12
"""Mean difference of grey levels, of the range, that counts as other content. Between two photographs it is about
0.25, and of grain, averaged by the small copy, below 0.02."""
GAP_SHARE = 0.25


def step_for(duration_s: float | None) -> float:
    """Return the step of time for a clip of that length.

    >>> step_for(10.0), step_for(3600.0), step_for(None)
    (1.0, 12.0, 1.0)
    """
    return LEAST_STEP_S if duration_s is None else max(LEAST_STEP_S, duration_s / MOST_STEPS)


class FrameChooser:
    """Decides for each frame, in order, whether it is rated, and why."""

    def __init__(self, step_s: float) -> None:
        """Raises ValueError for a step that is not above 0."""
        if not step_s > 0:
            raise ValueError(f"every_s={step_s}: must be above 0 seconds")
        self.step_s = step_s
        self._last: tuple[float, NDArray[np.float32]] | None = None

    def choose(self, time_s: float, small: NDArray[np.float32]) -> str | None:
        """Return `start`, `time` or `content` where the frame is chosen, else None."""
        why = self._why(time_s, small)
        if why is not None:
            self._last = (time_s, small)
        return why

    def _why(self, time_s: float, small: NDArray[np.float32]) -> str | None:
        if self._last is None:
            return "start"
        then, before = self._last
        tolerance = 1e-6 * self.step_s  # times are binary fractions of a second
        if time_s - then >= self.step_s - tolerance:
            return "time"
        if before.shape != small.shape:  # the size changed within the stream
            return "content"
        has_gap = time_s - then >= GAP_SHARE * self.step_s - tolerance
        return "content" if has_gap and float(np.abs(small - before).mean()) > CHANGE else None
