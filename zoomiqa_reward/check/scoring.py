"""Asking a reward: everything that it may need is given, every failure is counted, and the time is taken."""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from zoomiqa_reward.check.ladders import Pool
from zoomiqa_reward.images.content import contentless
from zoomiqa_reward.rewards.base import Reward, require_pointwise


class CheckScorer:
    """A reward with a count of what it was asked, what it could not measure and how long it took."""

    def __init__(self, reward: Reward) -> None:
        """Raises ValueError for a reward whose values mean something only within one call."""
        require_pointwise(reward, "the check compares values between calls")
        self.reward = reward
        self.num_asked = 0
        """Images that have to have a value."""
        self.errors: list[str] = []
        """One entry per image that has to have a value and has none."""
        self._num_timed = 0
        self._pixels_timed = 0
        self._seconds = 0.0
        self._is_warm = False

    def __call__(
        self, images: Sequence[Tensor], pool: Pool, *, hr: Tensor | None = None, may_fail: bool = False
    ) -> list[float]:
        """Return one value per image, NaN where it could not be measured.

        The reward gets the pool's `lq`, its photograph (or `hr`) as `hr`, and an empty prompt, for every image. An
        image without content that has no value is no failure; with `may_fail` none is.
        """
        count = len(images)
        reference = pool.hr if hr is None else hr
        began = time.perf_counter()
        with torch.no_grad():
            scores = self.reward(list(images), lq=[pool.lq] * count, hr=[reference] * count, prompts=[""] * count)
        values, valid = scores.value.detach().tolist(), scores.valid.tolist()  # waits for the device
        took = time.perf_counter() - began
        if len(values) != count:
            raise ValueError(f"reward {self.reward.name!r} returned {len(values)} values for {count} images")
        if self._is_warm:  # the first call also loads, compiles and allocates
            self._num_timed += count
            self._pixels_timed += sum(image.shape[1] * image.shape[2] for image in images)
            self._seconds += took
        self._is_warm = True
        measured = [v if ok else math.nan for v, ok in zip(values, valid, strict=True)]
        if may_fail:
            return measured
        for image, value, error in zip(images, measured, scores.errors, strict=True):
            if not math.isnan(value):
                self.num_asked += 1
            elif contentless(image) is None:
                self.num_asked += 1
                self.errors.append(f"{pool.name}: {error or f'{self.reward.name} gave no value and no reason'}")
        return measured

    @property
    def images_per_s(self) -> float:
        """Without gradients, the first call left out; NaN before the second."""
        return self._num_timed / self._seconds if self._seconds else math.nan

    @property
    def megapixels_per_s(self) -> float:
        """As `images_per_s`."""
        return self._pixels_timed / 1e6 / self._seconds if self._seconds else math.nan
