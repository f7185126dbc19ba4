"""Rank images by their ratings, with ties named and failures last."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from zoomiqa_reward.images.loading import ImageSource, ImageSources, split_images
from zoomiqa_reward.model.order_by_pairs import PairJudge, order_by_pairs
from zoomiqa_reward.model.pairs import pair_probabilities
from zoomiqa_reward.model.ratings import Ratings
from zoomiqa_reward.rewards.argument_order import require_order
from zoomiqa_reward.rewards.base import Reward, ask, is_model


class Rater(Protocol):
    """A ZoomIQA, loaded or behind a server."""

    def rate(self, images: ImageSources, /, mode: str, strict: bool) -> Ratings:
        """Return the ratings [batch] of images."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Images from best to worst."""

    order: tuple[int, ...]
    """Indices into the images, best first. Images that could not be measured come last, in input order."""
    ratings: Ratings
    """In input order, not in rank order. For a reward: its values, on its own scale."""
    gap: float
    """Value of the best less that of the second; NaN with fewer than two measured images."""
    ties: tuple[tuple[int, ...], ...]
    """Groups of indices, best first. Neighbours in a group differ by at most `tie_margin`."""
    tie_margin: float
    """The requested margin, or twice the ratings' own `tolerance` if that is larger."""
    sureness: tuple[float, ...] = ()
    """With `confidence`: the probability that each measured image is better than the next one in `order`."""
    questions: int = 0
    """Pairs that the model was shown, each in both orders; 0 where the ratings alone decide."""

    @property
    def invalid(self) -> tuple[int, ...]:
        """Indices of images that could not be measured: the end of `order`."""
        return tuple(index for index in self.order if not bool(self.ratings.valid[index]))


def rank(
    iqa_or_reward: Rater | Reward,
    images: ImageSources,
    mode: str = "direct",
    tie_margin: float = 0.01,
    kappa: float = 0.0,
    *,
    confidence: float | None = None,
    lq: ImageSource | Sequence[ImageSource] | None = None,
    hr: ImageSource | Sequence[ImageSource] | None = None,
) -> Ranking:
    """Rank images by mean - kappa x std, highest first. Equal images keep their input order.

    confidence, above 0.5 and below 1: images are tied unless one is better than the next with that probability
    (`model.pairs`), which replaces `tie_margin`. A model that can compare two images in one question is then asked, but
    only about pairs that the ratings leave unsure, and only as the order needs it; its answers may change the order.

    lq, hr: the low-quality image, or the clean reference, that the images restore: one for all of them, or a list with
    one per image. A reward takes what it needs. A ZoomIQA is then wrapped: the images are ranked by
    `restoration.metrics.ConditionedReward` (lq) or `ReferencedReward` (hr) of its rating, on that reward's scale.

    The source is a ZoomIQA, which rates with strict=True so that no image influences another, or any Reward; `mode` is
    then ignored. kappa > 0 prefers images with a small standard deviation and needs a source that has one.
    Raises ValueError for a negative or NaN number, another confidence, for a kappa or a confidence without standard
    deviation, and for both lq and hr with a ZoomIQA; ImageError (ZoomIQA).
    """
    require_order("rank(iqa_or_reward, images)", judges={"iqa_or_reward": iqa_or_reward})
    if not tie_margin >= 0 or not kappa >= 0:
        raise ValueError(f"tie_margin={tie_margin}, kappa={kappa}: both must be at least 0")
    if confidence is not None and (not 0.5 < confidence < 1 or kappa > 0 or mode != "direct"):
        raise ValueError(
            f"confidence={confidence}, kappa={kappa}, mode={mode!r}: confidence must be above 0.5 and below 1, with "
            "kappa=0 and mode='direct'"
        )
    ratings = _measure(iqa_or_reward, images, mode, lq, hr)
    plain = ranking_of(ratings, tie_margin, kappa)
    if confidence is None:
        return plain
    measured, failed = [index for index in plain.order if index not in plain.invalid], plain.invalid
    means = ratings.mean.tolist()
    surely = order_by_pairs(_pair_judge(iqa_or_reward, images, ratings), measured, confidence)
    gap = _lead(means[surely.order[0]], means[surely.order[1]]) if len(measured) > 1 else math.nan
    return Ranking(
        order=(*surely.order, *failed), ratings=ratings, gap=gap, ties=surely.ties, tie_margin=0.0,
        sureness=surely.sureness, questions=surely.questions,
    )  # fmt: skip


def ranking_of(ratings: Ratings, tie_margin: float = 0.01, kappa: float = 0.0) -> Ranking:
    """Return the ranking of images that are already rated; see `rank`.

    Raises ValueError for a kappa without standard deviation.
    """
    means, stds, valid = (values.tolist() for values in (ratings.mean, ratings.std, ratings.valid))
    if kappa > 0 and any(ok and math.isnan(std) for std, ok in zip(stds, valid, strict=True)):
        raise ValueError(
            f"kappa={kappa} needs a standard deviation, but some ratings have none; use mode='direct' or kappa=0"
        )
    keys = [mean - kappa * std if kappa > 0 else mean for mean, std in zip(means, stds, strict=True)]
    measured = sorted((index for index, ok in enumerate(valid) if ok), key=lambda index: -keys[index])
    failed = [index for index, ok in enumerate(valid) if not ok]
    gap = _lead(keys[measured[0]], keys[measured[1]]) if len(measured) > 1 else math.nan
    margin = max(tie_margin, 2 * ratings.tolerance)  # either of two ratings may be off by that much
    ties = _ties(measured, keys, margin)
    return Ranking(order=(*measured, *failed), ratings=ratings, gap=gap, ties=ties, tie_margin=margin)


def _pair_judge(iqa_or_reward: Rater | Reward, images: ImageSources, ratings: Ratings) -> PairJudge:
    """Return who compares: the ratings, and the model's question where it has one."""
    from zoomiqa_reward.model.zoomiqa import ZoomIQA

    sources = split_images(images)

    def asked(first: int, second: int) -> float:
        assert isinstance(iqa_or_reward, ZoomIQA)
        return float(iqa_or_reward.compare(sources[first], sources[second], how="question").probability[0])

    can_ask = isinstance(iqa_or_reward, ZoomIQA) and iqa_or_reward.protocol.pair is not None
    return PairJudge(by_rating=pair_probabilities(ratings), question=asked if can_ask else None)


def _measure(
    iqa_or_reward: Rater | Reward, images: ImageSources, mode: str, lq: ImageSources | None, hr: ImageSources | None
) -> Ratings:
    sources = split_images(images)
    if not is_model(iqa_or_reward):
        reward = cast(Reward, iqa_or_reward)
    elif lq is None and hr is None:
        return cast(Rater, iqa_or_reward).rate(images, mode=mode, strict=True)
    elif lq is not None and hr is not None:
        raise ValueError("lq and hr: a ZoomIQA is ranked with one of them; pass a reward that uses both")
    else:
        reward = _judged_together(iqa_or_reward, mode, "conditioned" if hr is None else "referenced")
    scores = ask(reward, sources, lq=_each(lq, sources), hr=_each(hr, sources), groups=[0] * len(sources))  # one group
    return Ratings(value=scores.value, std=scores.std, valid=scores.valid, errors=scores.errors, std_kind="none")


def _judged_together(iqa: Any, mode: str, other: str) -> Reward:
    from zoomiqa_reward.rewards.find import judged_together
    from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

    return judged_together(ZoomIQAReward(iqa, mode), other)


def _each(given: ImageSources | None, sources: Sequence[ImageSource]) -> list[ImageSource] | None:
    """Return one image per source; a single one serves all."""
    if given is None:
        return None
    listed = split_images(given)
    return listed * len(sources) if len(listed) == 1 else listed


def _lead(better: float, worse: float) -> float:
    """Return how far one value lies above another; 0 for two that are infinitely good."""
    return 0.0 if better == worse else better - worse


def _ties(order: Sequence[int], keys: Sequence[float], margin: float) -> tuple[tuple[int, ...], ...]:
    groups: list[list[int]] = []
    for index in order:
        # float32 values: two ratings exactly `margin` apart must not be split by rounding
        if groups and _lead(keys[groups[-1][-1]], keys[index]) <= margin + 1e-6:
            groups[-1].append(index)
        else:
            groups.append([index])
    return tuple(tuple(group) for group in groups if len(group) > 1)
