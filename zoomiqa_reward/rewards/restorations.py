"""Asking a reward about restorations of known sources: an image without content has no value, whatever the reward says.

NIQE prefers some black images to photographs, and a reward of the user's own may too. So best-of-N, refine and tuning
look at the image themselves (`images.content`) and do not ask about one that shows nothing. Where the source shows
nothing either (an even sky, a source of a few pixels), its restoration has to, and the reward decides alone.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zoomiqa_reward.images.content import contentless
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import Reward, ask

PREFIX = "the image has no content"


def lost_content(images: Sequence[Any], lq: Sequence[Any]) -> list[str | None]:
    """Return for each restoration why it shows nothing, None where it shows something or its source does not either."""
    sources: dict[int, bool] = {}
    found = []
    for image, source in zip(images, lq, strict=True):
        if id(source) not in sources:
            sources[id(source)] = contentless(load_image(source)) is None
        shown = image if isinstance(image, Tensor) else load_image(image)
        found.append(contentless(shown) if sources[id(source)] else None)
    return found


def ask_restorations(
    reward: Reward, images: Sequence[Any], lq: Sequence[Any], hr: Sequence[Any] | None = None,
    prompts: Sequence[str] | None = None, *, groups: Sequence[Hashable] | None = None, grad: bool = False,
) -> Scores:  # fmt: skip
    """Return the scores of restorations; one without content is not valid, with the reason, and not asked about.

    Groups are then compared without it. Every list has one entry per image. grad: as in `rewards.base.ask`; the values
    of the images that were asked about then keep their graph.
    """
    empty = lost_content(images, lq)
    if not any(empty):
        return ask(reward, list(images), lq=list(lq), hr=hr, prompts=prompts, groups=groups, grad=grad)
    shown = [index for index, why in enumerate(empty) if why is None]

    def part(items: Sequence[Any] | None) -> list[Any] | None:
        return None if items is None else [items[index] for index in shown]

    if not shown:
        nan = torch.full((len(empty),), math.nan)
        return Scores(value=nan, valid=torch.zeros(len(empty), dtype=torch.bool), std=nan.clone(), errors=tuple(empty))
    scores = ask(reward, part(images), lq=part(lq), hr=part(hr), prompts=part(prompts), groups=part(groups), grad=grad)
    return _spread_out(scores, shown, empty)


def _spread_out(scores: Scores, shown: list[int], empty: list[str | None]) -> Scores:
    """Return the scores with the rows of the images that were not asked about in their places."""
    count = len(empty)

    def wide(values: Tensor) -> Tensor:
        whole = torch.full((count,), math.nan, dtype=values.dtype, device=values.device)
        return whole.index_copy(0, torch.tensor(shown, device=values.device), values)

    def listed(values: Sequence[Any], nothing: Any) -> list[Any]:
        found = [nothing] * count
        for index, value in zip(shown, values, strict=True):
            found[index] = value
        return found

    value = wide(scores.value)
    errors = [why or own for why, own in zip(empty, listed(scores.errors, None), strict=True)]
    terms = None if scores.terms is None else tuple(
        term | {key: listed(term[key], math.nan) for key in ("raw", "normalised") if key in term}
        for term in scores.terms
    )  # fmt: skip
    answers = None if scores.answers is None else tuple(listed(scores.answers, ()))
    return Scores(value=value, valid=~value.isnan(), std=wide(scores.std), errors=tuple(errors), answers=answers,
                  terms=terms)  # fmt: skip


def as_worst(scores: Scores, groups: Sequence[Hashable], width: float = math.inf) -> Scores:
    """Return the scores in which an image without content is the worst of its group, as training has to see it.

    It gets the group's minimum less one spread (population standard deviation of those measured), at least 5 % of the
    reward's `width` where that is finite, and something above 0 always. As missing it would cost the policy nothing,
    and blanking the scene would pay wherever it is better than a bad restoration. `errors` keeps the reason, so that
    nobody learns to imitate it. A group without any measured image stays not valid.
    """
    value, valid = scores.value.clone(), scores.valid.clone()
    blank = [why is not None and why.startswith(PREFIX) for why in scores.errors]
    for group in {group for group, is_blank in zip(groups, blank, strict=True) if is_blank}:
        members = [index for index, own in enumerate(groups) if own == group]
        known = torch.tensor([float(value[index]) for index in members if scores.valid[index] and not blank[index]])
        if not len(known):
            continue
        least = 0.05 * width if math.isfinite(width) else 0.0
        step = max(float(known.std(correction=0)), least) or max(0.05 * abs(float(known.min())), 1e-3)
        for index in members:
            if blank[index]:
                value[index], valid[index] = float(known.min()) - step, True
    return replace(scores, value=value, valid=valid)
