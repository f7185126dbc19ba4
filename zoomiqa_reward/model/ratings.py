"""Results of measuring: ratings, scores and assessments. A failed measurement is NaN with `valid=False`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict, cast

import torch
from torch import Tensor

from zoomiqa_reward.model.turns import Turn

STD_KINDS = ("token", "samples", "none")


@dataclass(frozen=True, kw_only=True)
class RatingSpread:
    """Distribution over ratings, from the probabilities of an answer's rating tokens."""

    mean: float
    """1..5; renormalised over `mass`. It is not the rating, which is the number in the text."""
    std: float
    mass: float
    """Share of the probability, 0..1, that the listed alternatives put on ratings."""


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """The rating of one image in words: prompt, answer and region of each round."""

    rating: float
    """Clipped to 1..5; NaN if invalid."""
    std: float
    """Standard deviation of `spread` if it holds at least half of the probability; NaN otherwise."""
    turns: tuple[Turn, ...]
    """One or two rounds. An unreadable round 2 is kept here too, after round 1."""
    valid: bool
    error: str | None = None
    """Why there is no rating."""
    warning: str | None = None
    """A problem with a rating that is still valid: round 1 had no readable route, an answer was cut short, or the text
    contradicts the numbers."""
    spread: RatingSpread | None = None
    """From the log-probabilities of the rating's tokens, if a text server returns them."""


class TermScores(TypedDict):
    """One term of a sum of rewards. The lists have one number per image."""

    name: str
    weight: float
    normalise: NotRequired[str]
    raw: list[float]
    """As the term's reward gives them."""
    normalised: NotRequired[list[float]]
    """Within their groups."""
    share: NotRequired[float]
    """Of the sum's variance within groups."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Scores of a batch of images by a reward. Higher is always better.

    Numbers of another dtype become float32.
    NaN is never a measurement. An entry whose value is NaN is not valid, whatever was passed, and the value of an
    entry that is not valid is NaN.
    """

    value: Tensor
    """[batch] float32; NaN where not valid."""
    valid: Tensor
    """[batch] bool; False: not measured. Drop the image; never read it as a low score."""
    std: Tensor
    """[batch] float32; NaN if the reward has no standard deviation."""
    errors: tuple[str | None, ...] = ()
    """One entry per image: None, or the reason why it could not be measured. Always [batch] long."""
    answers: tuple[tuple[Assessment, ...], ...] | None = None
    """If the reward answers in words: the assessments of each image, one per sample."""
    terms: tuple[TermScores, ...] | None = None
    """If the reward is a sum: one dictionary per term, with `name`, `weight` and the list `raw`."""
    info: Mapping[str, object] = field(default_factory=dict)
    """Further reports of a reward. `info["errors"]` and `info["terms"]` repeat the fields of these names."""

    def __post_init__(self) -> None:
        if not self.value.shape == self.std.shape == self.valid.shape or self.value.ndim != 1:
            shapes = [tuple(t.shape) for t in (self.value, self.std, self.valid)]
            raise ValueError(f"value, std and valid must all be [batch], not {shapes}")
        for name in ("value", "std"):
            if getattr(self, name).dtype != torch.float32:
                object.__setattr__(self, name, getattr(self, name).to(torch.float32))
        if self.valid.dtype != torch.bool:
            object.__setattr__(self, "valid", self.valid.bool())
        missing = self.value.detach().isnan()
        valid = self.valid.to(missing.device) & ~missing
        if not torch.equal(valid, self.valid.to(missing.device)):
            object.__setattr__(self, "valid", valid)
        if bool((~valid & ~missing).any()):
            object.__setattr__(self, "value", torch.where(valid, self.value, torch.full_like(self.value, math.nan)))
        reported = cast("Sequence[str | None] | None", self.info.get("errors"))
        errors = tuple(self.errors or reported or (None,) * len(self))
        if len(errors) != len(self):
            raise ValueError(f"errors holds {len(errors)} entries for {len(self)} images")
        object.__setattr__(self, "errors", errors)
        repeated: dict[str, object] = {"errors": list(errors)}
        if self.terms is not None:
            repeated["terms"] = list(self.terms)
        object.__setattr__(self, "info", {**self.info, **repeated})

    def __len__(self) -> int:
        return self.value.shape[0]

    def reason(self, index: int, name: str) -> str:
        """Return why image `index` was not measured. Without a reason, return a sentence with the reward's name."""
        return self.errors[index] or f"{name} could not measure it and gave no reason"


@dataclass(frozen=True, kw_only=True, eq=False)
class Ratings(Scores):
    """Ratings of a batch of images from 1 (bad) to 5 (excellent), one entry per image in input order."""

    std_kind: str
    """Source of the standard deviation. `token`: the distribution over rating tokens; `samples`: sampled answers (NaN
    for one greedy answer); `none`: there is none."""
    tolerance: float = 0.0
    """Possible error of a mean because the distribution was not read completely, as over a text server."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std_kind not in STD_KINDS:
            raise ValueError(f"std_kind {self.std_kind!r}: must be one of {', '.join(STD_KINDS)}")

    @property
    def mean(self) -> Tensor:
        """[batch] float32 in 1..5, NaN if not valid: another name of `value`."""
        return self.value
