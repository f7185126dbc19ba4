"""The adversarial probe: how far a change that nobody sees raises the score.

Projected gradient ascent from the enlarged low-quality image, where a restorer's training starts: each step moves
every value by its gradient's sign, and no value moves further than `EPSILON` in all. A reward that gains more by this
than by the detail that was lost will teach its restorer this, not detail.
Source: Madry et al. 2018 (PGD in the maximum norm), here upwards and without a random start.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zoomiqa_reward.check.ladders import DETAIL, Pool
from zoomiqa_reward.check.scoring import CheckScorer
from zoomiqa_reward.rewards.base import Reward, ask

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
        raise ValueError(f"reward {reward.name!r}: its value does not depend on the image it was given")
    return float(scores.value[0].detach()), gradient
