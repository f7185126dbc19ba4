"""Which of these is best: images in order of their ratings, with ties named and failures last."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zoomiqa_reward.images.batches import split_images
from zoomiqa_reward.model.ratings import Ratings
from zoomiqa_reward.rewards.base import ask


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Images from best to worst."""

    order: tuple[int, ...]
    """Indices into the images given, best first; those that could not be measured last, in the order given."""
    ratings: Ratings
    """In the order of the images given, not of the ranking. From a reward these are its values, on its own scale."""
    gap: float
    """How far the best lies above the second; NaN with fewer than two measured images."""
    ties: tuple[tuple[int, ...], ...]
    """Groups of indices, best first, that lie within `tie_margin` of their neighbour in the ranking."""
    tie_margin: float
    """What was asked for, or twice the ratings' own `tolerance` where that is more."""

    @property
    def invalid(self) -> tuple[int, ...]:
        """Indices that could not be measured; the end of `order`."""
        return tuple(index for index in self.order if not bool(self.ratings.valid[index]))


def rank(
    iqa_or_reward: Any, images: Any, mode: str = "direct", tie_margin: float = 0.01, kappa: float = 0.0
) -> Ranking:
    """Return the images' ranking by mean - kappa x std, higher first; equal ones keep the order given.

    Takes a ZoomIQA, read with strict=True so that no image's place depends on its company, or any Reward (`mode` is
    then the reward's own matter). kappa > 0 prefers images that the model is sure about and needs a source with a
    spread. Raises ValueError for a negative or NaN number, or a kappa without spread; ImageError from a ZoomIQA.
    """
    if not tie_margin >= 0 or not kappa >= 0:
        raise ValueError(f"tie_margin={tie_margin}, kappa={kappa}: both must be at least 0")
    ratings = _measure(iqa_or_reward, images, mode)
    means, stds, valid = (values.tolist() for values in (ratings.mean, ratings.std, ratings.valid))
    if kappa > 0 and any(ok and math.isnan(std) for std, ok in zip(stds, valid, strict=True)):
        raise ValueError(f"kappa={kappa} needs a spread, but some ratings have none; use mode='direct' or kappa=0")
    keys = [mean - kappa * std if kappa > 0 else mean for mean, std in zip(means, stds, strict=True)]
    measured = sorted((index for index, ok in enumerate(valid) if ok), key=lambda index: -keys[index])
    failed = [index for index, ok in enumerate(valid) if not ok]
    gap = keys[measured[0]] - keys[measured[1]] if len(measured) > 1 else math.nan
    margin = max(tie_margin, 2 * ratings.tolerance)  # either of two ratings may be off by that much
    ties = _ties(measured, keys, margin)
    return Ranking(order=(*measured, *failed), ratings=ratings, gap=gap, ties=ties, tie_margin=margin)


def _measure(iqa_or_reward: Any, images: Any, mode: str) -> Ratings:
    if hasattr(iqa_or_reward, "rate"):
        return iqa_or_reward.rate(images, mode=mode, strict=True)
    sources = split_images(images)
    scores = ask(iqa_or_reward, sources, groups=[0] * len(sources))  # what is ranked is one group
    return Ratings(value=scores.value, std=scores.std, valid=scores.valid, errors=scores.errors, std_kind="none")


def _ties(order: Sequence[int], keys: Sequence[float], margin: float) -> tuple[tuple[int, ...], ...]:
    groups: list[list[int]] = []
    for index in order:
        # float32 values: two ratings exactly `margin` apart must not be split by rounding
        if groups and keys[groups[-1][-1]] - keys[index] <= margin + 1e-6:
            groups[-1].append(index)
        else:
            groups.append([index])
    return tuple(tuple(group) for group in groups if len(group) > 1)
