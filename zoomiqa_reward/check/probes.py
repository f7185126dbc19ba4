"""The probes of the check: scoring, transport and the adversarial probe.

Scoring: the reward gets every input that it may need; failures and time are counted.

Transport: the same images, encoded as other projects send them to a reward server. A shift of all scores by the same
amount does not change a ranking. A change that differs between candidates does, if it is as large as their differences.

The adversarial probe: how much an invisible change raises the score. Projected gradient ascent from the enlarged
low-quality image, where a restorer's training starts: each step moves every value by its gradient's sign, and no value
moves further than `EPSILON` in all. If a reward gains more by this than by the lost detail, a restorer that is
trained on it learns this, not detail.
Source: Madry et al. 2018 (PGD in the maximum norm), here upwards and without a random start.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoomiqa_reward.check.ladders import DETAIL, SCALE, Pool, reduce, through_png
from zoomiqa_reward.images.content import contentless
from zoomiqa_reward.images.filters import resize_bicubic, through_jpeg
from zoomiqa_reward.rewards.base import Reward, ask, outside_range, require_pointwise


class CheckScorer:
    """A reward that counts its images, its failures and its time."""

    def __init__(self, reward: Reward) -> None:
        """Raises ValueError for a reward whose values mean something only within one call."""
        require_pointwise(reward, "the check compares values between calls")
        self.reward = reward
        self.num_asked = 0
        """Images that have to have a value."""
        self.errors: list[str] = []
        """One entry per image that has to have a value and has none."""
        self.outside: str | None = None
        """What is wrong with the declared range, by the first value outside it."""
        self._num_timed = 0
        self._pixels_timed = 0
        self._seconds = 0.0
        self._is_warm = False

    def __call__(
        self,
        images: Sequence[Tensor],
        pool: Pool,
        *,
        lq: Tensor | None = None,
        hr: Tensor | None = None,
        may_fail: bool = False,
    ) -> list[float]:
        """Return one value per image, NaN where it could not be measured.

        The reward gets the pool's `lq` and its photograph as `hr` (or those given), and an empty prompt, for every
        image. An image without content that has no value is no failure; with `may_fail` none is.
        """
        count = len(images)
        source, reference = pool.lq if lq is None else lq, pool.hr if hr is None else hr
        began = time.perf_counter()
        with torch.no_grad():
            scores = self.reward(list(images), lq=[source] * count, hr=[reference] * count, prompts=[""] * count)
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
        self.outside = self.outside or outside_range(self.reward, measured)
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
    Transport(name="resize 7/8", send=lambda image: _resized(image, RESIZE_FACTOR), changes_size=True),
)


def _resized(image: Tensor, factor: float) -> Tensor:
    """Return the image about `factor` times smaller, its sides multiples of `SCALE`, so that it has a source `lq`."""
    height, width = (max(1, round(side / factor / SCALE)) * SCALE for side in image.shape[1:])
    return resize_bicubic(image, height, width)


def sent_scores(pool: Pool, scorer: CheckScorer) -> dict[str, tuple[float, ...]]:
    """Return the values of the `detail` ladder by transport; a resized image gets a reference and source alike."""
    values: dict[str, tuple[float, ...]] = {}
    for way in TRANSPORTS:
        hr = way.send(pool.hr) if way.changes_size else None
        lq = None if hr is None else reduce(hr, SCALE)
        values[way.name] = tuple(scorer([way.send(image) for image in pool.ladders[DETAIL]], pool, lq=lq, hr=hr))
    return values


EPSILON = 2 / 255
STEPS = 5
STEP = EPSILON / 2
"""Large enough that any value can reach the limit, and come back once, within the steps."""
NOT_DIFFERENTIABLE = "not differentiable"


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """What the steps did to one image."""

    start: float = math.nan
    best: float = math.nan
    """Highest value on the way."""
    random: float = math.nan
    """Value after a change as large in random directions: what size alone does."""
    has_gradient: bool = False
    """Whether every gradient was finite, and the first not zero."""
    error: str | None = None
    """Why there is no ascent."""

    @property
    def rise(self) -> float:
        """How far the value rose, at least 0; NaN where there was no ascent."""
        return self.best - self.start


def climb(reward: Reward, pool: Pool, scorer: CheckScorer) -> Ascent:
    """Return what a few invisible steps uphill do to the enlarged low-quality image.

    A reward that is not differentiable, cuts its graph or cannot measure the image gives an Ascent with the reason.
    """
    if not reward.differentiable:
        return Ascent(error=NOT_DIFFERENTIABLE)
    start = pool.ladders[DETAIL][-1]
    image, values, gradients = start, [], []
    for _ in range(STEPS):
        leaf = image.detach().clone().requires_grad_(True)
        try:
            value, gradient = _value_and_gradient(reward, leaf, pool)
        except ValueError as error:  # says differentiable and is not
            return Ascent(error=str(error))
        values.append(value)
        if gradient is None:
            break
        gradients.append(gradient)
        stepped = leaf.detach() + STEP * gradient.nan_to_num(0.0).sign()
        image = torch.minimum(torch.maximum(stepped, start - EPSILON), start + EPSILON).clamp(0, 1)
    if not gradients:
        return Ascent(error=f"{reward.name} could not measure the image")
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, start.shape, generator=generator) * 2.0 - 1
    last, random = scorer([image, (start + EPSILON * signs).clamp(0, 1)], pool)
    measured = [value for value in (*values, last) if math.isfinite(value)]
    return Ascent(
        start=values[0], best=max(measured), random=random,
        has_gradient=all(bool(g.isfinite().all()) for g in gradients) and bool(gradients[0].any()),
    )  # fmt: skip


def _value_and_gradient(reward: Reward, leaf: Tensor, pool: Pool) -> tuple[float, Tensor | None]:
    """Return the value and its gradient, or NaN and None where it could not be measured."""
    with torch.enable_grad():
        scores = ask(reward, [leaf], lq=[pool.lq], hr=[pool.hr], prompts=[""], grad=True)
        if not bool(scores.valid[0]):
            return math.nan, None
        [gradient] = torch.autograd.grad(scores.value[0], leaf, allow_unused=True)
    if gradient is None:
        raise ValueError(
            f"reward {reward.name!r}: its value does not depend on the image, so it has no gradient; declare "
            "differentiable=False, or compute in tensors"
        )
    return float(scores.value[0].detach()), gradient


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Values of one photograph; NaN where the reward gave none."""

    ladders: dict[str, tuple[float, ...]]
    """By kind, the untouched image first."""
    worsened: dict[str, tuple[float, ...]]
    """By kind, the bad image that was made worse first."""
    empty: dict[str, tuple[float, ...]]
    """By kind, the honest candidate first, then the emptied images."""
    contentless: dict[str, tuple[bool, ...]]
    """By kind, for the same images: whether the image has no content by the rule of `images.content`."""
    repeats: tuple[tuple[float, ...], ...]
    """One row per image that was scored several times."""
    sent: dict[str, tuple[float, ...]]
    """The `detail` ladder by transport."""
    ascent: Ascent
    num_asked: int
    """Images that had to have a value."""
    num_failed: int
    """Those of them that had none."""
