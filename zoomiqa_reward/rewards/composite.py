"""Combine several rewards: normalise each within its group, weight, add, and report the share of each."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoomiqa_reward.images.loading import ImageSource, ImageSources, split_images
from zoomiqa_reward.model.numerics import canonical
from zoomiqa_reward.model.ratings import Scores, TermScores
from zoomiqa_reward.rewards.base import Reward, ask, fingerprint_of, is_groupwise, modules_of, require_reward
from zoomiqa_reward.rewards.identity import added_by_subclass, state_digest
from zoomiqa_reward.rewards.normalise import (
    METHODS,
    find_groups,
    normalised,
    variance_shares,
    with_finite_bests,
)
from zoomiqa_reward.runs.settings import identity_of


@dataclass(frozen=True)
class Term:
    """One reward in a sum."""

    reward: Reward
    weight: float = 1.0
    """Factor after normalisation, at least 0. With 0 the term is measured and reported but not used."""
    normalise: str = "z"
    """`z`, `minmax`, `quantile` or `raw`; see `normalise.normalised`."""

    def __post_init__(self) -> None:
        require_reward(self.reward)
        if self.normalise not in METHODS:
            raise ValueError(f"normalise={self.normalise!r}: must be one of {', '.join(METHODS)}")
        if not 0 <= self.weight < math.inf:
            raise ValueError(
                f"weight={self.weight} of {self.reward.name!r}: must be finite and at least 0; "
                "for a metric where lower is better use MetricReward(..., higher_is_better=False)"
            )


class CompositeReward(Reward):
    """A weighted sum of rewards, each normalised within its group first.

    The value of an image depends on its group, so it has no meaning across groups or calls. Pass whole groups, and
    cache the terms instead of the sum. If every term is `raw`, this is a plain weighted sum.
    """

    def __init__(self, terms: Sequence[Term], *, name: str | None = None) -> None:
        """Combine `terms`. Raises ValueError for no terms, or if no weight is above 0."""
        self.terms = tuple(terms)
        if not any(term.weight > 0 for term in self.terms):
            raise ValueError(
                f"terms: {len(self.terms)} given, but none has a weight above 0, so the sum would always be 0"
            )
        self.name = name or "+".join(f"{term.weight:g}*{term.reward.name}" for term in self.terms)
        self._compares = any(term.normalise != "raw" for term in self.terms)
        self.groupwise = self._compares or any(is_groupwise(term.reward) for term in self.terms)
        self.needs = frozenset({"lq"} if self._compares else ()).union(*(term.reward.needs for term in self.terms))
        self.deterministic = all(term.reward.deterministic for term in self.terms)
        self.differentiable = all(
            term.reward.differentiable and term.normalise != "quantile" for term in self.terms if term.weight > 0
        )
        self.score_range = self._range()

    @property
    def parts(self) -> tuple[Reward, ...]:
        """The rewards of all terms with a weight above 0."""
        return tuple(term.reward for term in self.terms if term.weight > 0)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The networks of terms with weight 0: these are measured too, and no part holds them."""
        return tuple(module for term in self.terms if term.weight == 0 for module in modules_of(term.reward))

    @property
    def fingerprint(self) -> str:
        """Covers the fingerprint, weight and normalisation of every term."""
        return state_digest(
            "composite", [(fingerprint_of(term.reward), float(term.weight), term.normalise) for term in self.terms],
            *added_by_subclass(self, CompositeReward),
        )  # fmt: skip

    @property
    def identity(self) -> dict[str, object]:
        """Weight, normalisation and identity of each term."""
        return {"name": self.name, "terms": [
            {"weight": float(term.weight), "normalise": term.normalise, "reward": identity_of(term.reward)}
            for term in self.terms
        ]}  # fmt: skip

    @canonical
    def __call__(
        self,
        images: ImageSources,
        lq: ImageSources | None = None,
        hr: ImageSources | None = None,
        prompts: Sequence[str] | None = None,
        *,
        groups: Sequence[Hashable] | Tensor | None = None,
        grad: bool = False,
    ) -> Scores:
        """Return the sums. An image is not valid if a term with a weight above 0 could not measure it.

        groups: one hashable per image, equal for images of one group; by default the pixels of `lq` and the prompt.
        The statistics of a term come from all images of the group that this term could measure.

        `info["groups"]`: the index of each image's group. `terms`: one entry per term in order, with its `name`,
        `weight` and `normalise`, the lists `raw` and `normalised`, and its `share` of the sum's variance within groups
        (the shares sum to 1; the formula is in `normalise.variance_shares`). `std` is NaN.
        grad=True keeps the graph. Statistics are constants in it, so each value depends on its own image alone.
        Raises ValueError if the groups are unknown, or for grad=True with a term that has no gradient.
        """
        sources = split_images(images)
        if grad and not self.differentiable:
            raise ValueError(f"grad=True: {self.name!r} has {self._obstacle()}; set its weight to 0 or pass grad=False")
        index = self._groups(sources, lq, prompts, groups)
        scores = [
            ask(
                term.reward,
                sources,
                lq=lq,
                hr=hr,
                prompts=prompts,
                grad=grad and term.weight > 0,
                groups=index.tolist(),
            )
            for term in self.terms
        ]
        if not sources:
            return Scores(value=torch.zeros(0), valid=torch.zeros(0, dtype=torch.bool), std=torch.zeros(0),
                          terms=self._terms([], [], []), info={"groups": []})  # fmt: skip
        home = scores[0].value.device
        raw = [
            torch.where(term_scores.valid, term_scores.value, torch.full_like(term_scores.value, math.nan)).to(home)
            for term_scores in scores
        ]
        # Without groups an infinitely good value stays so: a number in its place would follow from the other images.
        rescaled = raw if not self.groupwise else [
            normalised(with_finite_bests(term_scores, index), index, term.normalise)
            for term_scores, term in zip(raw, self.terms, strict=True)
        ]  # fmt: skip
        parts = torch.stack(
            [term.weight * term_scores if term.weight > 0 else torch.zeros_like(term_scores)
             for term_scores, term in zip(rescaled, self.terms, strict=True)]
        )  # fmt: skip
        value = parts.sum(dim=0)
        valid = ~value.detach().isnan() & (value.detach() != -math.inf)
        errors = [self._errors(scores, position) for position in range(len(sources))]
        terms = self._terms(raw, rescaled, variance_shares(parts, index))
        return Scores(value=value, valid=valid, std=torch.full_like(value.detach(), math.nan), errors=tuple(errors),
                      terms=terms, info={"groups": index.tolist()})  # fmt: skip

    def _groups(
        self,
        sources: list[ImageSource],
        lq: ImageSources | None,
        prompts: Sequence[str] | None,
        groups: Sequence[Hashable] | Tensor | None,
    ) -> Tensor:
        if groups is None and not self.groupwise:
            groups = [0] * len(sources)
        return find_groups(self.name, len(sources), lq, prompts, groups)

    def _errors(self, scores: list[Scores], index: int) -> str | None:
        messages = []
        for term, term_scores in zip(self.terms, scores, strict=True):
            if term.weight > 0 and not bool(term_scores.valid[index]):
                messages.append(f"{term.reward.name}: {term_scores.errors[index] or 'not measured'}")
        return "; ".join(messages) or None

    def _terms(self, raw: list[Tensor], rescaled: list[Tensor], shares: list[float]) -> tuple[TermScores, ...]:
        return tuple(
            {
                "name": term.reward.name,
                "weight": float(term.weight),
                "normalise": term.normalise,
                "raw": raw[k].detach().tolist() if raw else [],
                "normalised": rescaled[k].detach().tolist() if raw else [],
                "share": shares[k] if raw else math.nan,
            }
            for k, term in enumerate(self.terms)
        )

    def _obstacle(self) -> str:
        for term in self.terms:
            if term.weight > 0 and not term.reward.differentiable:
                return f"the term {term.reward.name!r}, which is not differentiable"
        return "a term with normalise='quantile', which has steps"

    def _range(self) -> tuple[float, float]:
        """A z-value is bounded by its group's size only, so its range is infinite."""
        infinite = (-math.inf, math.inf)
        low = high = 0.0
        for term in self.terms:
            if term.weight > 0:
                bounds = {"z": infinite, "raw": term.reward.score_range}
                bottom, top = bounds.get(term.normalise, (0.0, 1.0))
                low, high = low + term.weight * bottom, high + term.weight * top
        return low, high
