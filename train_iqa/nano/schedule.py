"""How far a run is: by steps, or by the seconds that it was given."""

import math
import time
from collections.abc import Callable


def cosine_lr(step: int, steps: int, peak: float, warmup: int = 60, floor: float = 0.02) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine to `floor` x peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * cosine((step - warmup) / max(1, steps - warmup), floor)


def cosine(progress: float, floor: float = 0.02) -> float:
    """Return 1 at progress 0, `floor` at 1 and after.

    >>> cosine(0.0), round(cosine(0.5, 0.0), 3), cosine(2.0)
    (1.0, 0.5, 0.02)
    """
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))


class TimeBudget:
    """Seconds spent of those given; a part of a run's state, so that a run that goes on spends only the rest."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._now = seconds, now
        self._spent, self._since = 0.0, now()

    @property
    def spent(self) -> float:
        """Seconds spent, in this process and in those before."""
        return self._spent + self._now() - self._since

    @property
    def progress(self) -> float:
        """Share of the seconds that is spent, 0..1."""
        return min(1.0, self.spent / self.seconds) if self.seconds > 0 else 1.0

    def start(self) -> None:
        """Count from now: what passed since the clock was made was not training."""
        self._since = self._now()

    def state_dict(self) -> dict[str, float]:
        """Return the seconds spent."""
        return {"spent": self.spent}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from the seconds spent."""
        self._spent, self._since = state["spent"], self._now()
