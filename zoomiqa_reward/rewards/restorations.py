"""Score restorations of known sources. An image without content has no value, whatever the reward returns.

NIQE prefers some black images to photographs, and a user's reward may do so too. So best-of-N, refine and tuning check
the image themselves (`images.content`) and do not score an image that shows nothing. If the source shows nothing either
(an even sky, a few pixels), its restoration may too, and the reward decides alone.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from zoomiqa_reward.images.content import contentless, measures
from zoomiqa_reward.images.filters import resize_bicubic
from zoomiqa_reward.images.loading import ImageSource, load_image
from zoomiqa_reward.model.ratings import Scores, TermScores
from zoomiqa_reward.rewards.base import Reward, ask
from zoomiqa_reward.rewards.normalise import with_finite_best

T = TypeVar("T")

PREFIX = "the image has no content"
EMPTY_SOURCE = "the low-quality image shows nothing either"
"""Start of the reason of a restoration that is as empty as its source (`name_empty_sources`)."""
KEPT_SHARE = 0.5
"""Of the contrast and the sharpness of a source that is too smooth for the rule once it is enlarged."""


def lost_content(images: Sequence[ImageSource], lq: Sequence[ImageSource]) -> list[str | None]:
    """Return for each restoration why it shows nothing; None if it has content or if its source has none either.

    A small smooth source shows something, yet enlarged by bicubic too little for the rule. Its restoration is then held
    against that enlargement, and has lost its content below half of its contrast or half of its sharpness.
    """
    return [_lost(image, source) for image, source in zip(images, lq, strict=True)]


def _lost(image: ImageSource, source: ImageSource) -> str | None:
    shown = image if isinstance(image, Tensor) else load_image(image)
    reason = contentless(shown)
    if reason is None:
        return None
    given = load_image(source)
    if contentless(given) is not None:
        return None
    enlarged = resize_bicubic(given, *shown.shape[-2:])
    if contentless(enlarged) is None or not bool(shown.isfinite().all()):
        return reason
    pairs = zip(measures(shown), measures(enlarged), strict=True)
    return reason if any(restored < KEPT_SHARE * plain for restored, plain in pairs) else None


def ask_restorations(
    reward: Reward, images: Sequence[ImageSource], lq: Sequence[ImageSource], hr: Sequence[ImageSource] | None = None,
    prompts: Sequence[str] | None = None, *, groups: Sequence[Hashable] | None = None, grad: bool = False,
) -> Scores:  # fmt: skip
    """Return the scores of restorations. One without content is not scored; it is not valid, with the reason.

    Groups are then compared without it. Every list has one entry per image. grad: as in `rewards.base.ask`; the values
    of the images that were asked about then keep their graph.
    """
    empty = lost_content(images, lq)
    if not any(empty):
        return ask(reward, list(images), lq=list(lq), hr=hr, prompts=prompts, groups=groups, grad=grad)
    shown = [index for index, why in enumerate(empty) if why is None]

    def part(items: Sequence[T]) -> list[T]:
        return [items[index] for index in shown]

    def part_if_given(items: Sequence[T] | None) -> list[T] | None:
        return None if items is None else part(items)

    if not shown:
        nan = torch.full((len(empty),), math.nan)
        return Scores(value=nan, valid=torch.zeros(len(empty), dtype=torch.bool), std=nan.clone(), errors=tuple(empty))
    scores = ask(
        reward, part(images), lq=part(lq), hr=part_if_given(hr), prompts=part_if_given(prompts),
        groups=part_if_given(groups), grad=grad,
    )  # fmt: skip
    return _spread_out(scores, shown, empty)


def _spread_out(scores: Scores, shown: list[int], empty: list[str | None]) -> Scores:
    """Return the scores with rows for the images that were not scored."""
    count = len(empty)

    def wide(values: Tensor) -> Tensor:
        whole = torch.full((count,), math.nan, dtype=values.dtype, device=values.device)
        return whole.index_copy(0, torch.tensor(shown, device=values.device), values)

    def listed(values: Sequence[T], nothing: T) -> list[T]:
        spread = [nothing] * count
        for index, value in zip(shown, values, strict=True):
            spread[index] = value
        return spread

    value = wide(scores.value)
    errors = [why or error for why, error in zip(empty, listed(scores.errors, None), strict=True)]

    def wide_term(term: TermScores) -> TermScores:
        spread = term.copy()
        if "raw" in term:
            spread["raw"] = listed(term["raw"], math.nan)
        if "normalised" in term:
            spread["normalised"] = listed(term["normalised"], math.nan)
        return spread

    terms = None if scores.terms is None else tuple(wide_term(term) for term in scores.terms)
    answers = None if scores.answers is None else tuple(listed(scores.answers, ()))
    return Scores(value=value, valid=~value.isnan(), std=wide(scores.std), errors=tuple(errors), answers=answers,
                  terms=terms)  # fmt: skip


def as_worst(scores: Scores, groups: Sequence[Hashable], width: float = math.inf) -> Scores:
    """Return the scores with each image without content as the worst of its group, for training.

    It gets the group's minimum less one population standard deviation of the measured images. The difference is at
    least 5 % of the reward's `width` if that is finite, and always above 0. If it counted as missing, it would cost the
    policy nothing, and blanking the scene would pay wherever that beats a bad restoration. `errors` keeps the reason,
    so that no algorithm learns to imitate it. Infinitely good images count as `with_finite_best` says, infinitely bad
    ones not at all. A group without any other image stays not valid.
    """
    value, valid = scores.value.clone(), scores.valid.clone()
    blank = [why is not None and why.startswith(PREFIX) for why in scores.errors]
    for group in {group for group, is_blank in zip(groups, blank, strict=True) if is_blank}:
        members = [index for index, key in enumerate(groups) if key == group]
        measured = torch.tensor([float(value[index]) for index in members if scores.valid[index] and not blank[index]])
        measured = with_finite_best(measured[measured != -math.inf])
        if not len(measured):
            continue
        least = 0.05 * width if math.isfinite(width) else 0.0
        step = max(float(measured.std(correction=0)), least) or max(0.05 * abs(float(measured.min())), 1e-3)
        for index in members:
            if blank[index]:
                value[index], valid[index] = float(measured.min()) - step, True
    return replace(scores, value=value, valid=valid)


def name_empty_sources(scores: Scores, images: Sequence[ImageSource], lq: Sequence[ImageSource]) -> Scores:
    """Return the scores with `EMPTY_SOURCE` before the reason of each that the reward refused for its source's sake.

    Such an image has no content by the rule, and has lost none: its source, such as a crop of an even sky, has none.
    """
    refused = [index for index, is_valid in enumerate(scores.valid.tolist()) if not is_valid]
    errors = list(scores.errors)
    for index in refused:
        shown = load_image(images[index])
        if contentless(shown) is not None and _lost(shown, lq[index]) is None:
            errors[index] = f"{EMPTY_SOURCE}: {errors[index] or PREFIX}"
    return replace(scores, errors=tuple(errors))
