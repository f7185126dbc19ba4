"""What measuring returns: ratings, scores and assessments. A failed measurement is NaN with `valid=False`."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zoomiqa_reward.model.turns import Turn

STD_KINDS = ("token", "samples", "none")


@dataclass(frozen=True, kw_only=True)
class RatingSpread:
    """The distribution over ratings that the probabilities of an answer's rating tokens describe."""

    mean: float
    """1..5; renormalised over `mass`. Not the rating: that is the number in the text."""
    std: float
    mass: float
    """Share of the probability, 0..1, that the alternatives told of put on ratings."""


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """One image's rating in words: what was asked, answered and looked at, round by round."""

    rating: float
    """Clipped to 1..5; NaN if invalid."""
    std: float
    """Standard deviation of `spread` where it holds at least half of the probability; NaN otherwise."""
    turns: tuple[Turn, ...]
    """One or two rounds. An unreadable round 2 stands here with round 1 before it."""
    valid: bool
    error: str | None = None
    """Why there is no rating."""
    warning: str | None = None
    """What was odd about a rating that stands: round 1 could not be routed, or an answer was cut short."""
    spread: RatingSpread | None = None
    """At the rating's tokens, where a text server tells their log-probabilities."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """What a reward returns for a batch of images. Higher is better, always.

    NaN is never a measurement: an entry whose value is NaN is not valid, whatever was passed, and a value that is not
    valid reads NaN.
    """

    value: Tensor
    """[batch] float32; NaN where not valid."""
    valid: Tensor
    """[batch] bool; False: not measured. Drop the sample, never read it as a low score."""
    std: Tensor
    """[batch] float32; NaN where the reward knows no spread."""
    errors: tuple[str | None, ...] = ()
    """One entry per image: None, or why it could not be measured. Always [batch] long after construction."""
    answers: tuple[tuple[Assessment, ...], ...] | None = None
    """Of a reward that answers in words: for each image its assessments, one per sample."""
    terms: tuple[dict[str, Any], ...] | None = None
    """Of a reward made of several: one dictionary per term, with `name`, `weight` and the list `raw`."""
    info: dict[str, Any] = field(default_factory=dict)
    """What else a reward reports. `info["errors"]` and `info["terms"]` repeat the fields of these names."""

    def __post_init__(self) -> None:
        if not self.value.shape == self.std.shape == self.valid.shape or self.value.ndim != 1:
            shapes = [tuple(t.shape) for t in (self.value, self.std, self.valid)]
            raise ValueError(f"value, std and valid must all be [batch], not {shapes}")
        missing = self.value.detach().isnan()
        valid = self.valid.to(missing.device) & ~missing
        if not torch.equal(valid, self.valid.to(missing.device)):
            object.__setattr__(self, "valid", valid)
        if bool((~valid & ~missing).any()):
            object.__setattr__(self, "value", torch.where(valid, self.value, torch.full_like(self.value, math.nan)))
        errors = tuple(self.errors or self.info.get("errors") or (None,) * len(self))
        if len(errors) != len(self):
            raise ValueError(f"errors holds {len(errors)} entries for {len(self)} images")
        object.__setattr__(self, "errors", errors)
        repeated: dict[str, Any] = {"errors": list(errors)}
        if self.terms is not None:
            repeated["terms"] = list(self.terms)
        object.__setattr__(self, "info", self.info | repeated)

    def __len__(self) -> int:
        return self.value.shape[0]

    def reason(self, index: int, name: str) -> str:
        """Return why image `index` was not measured, in words that name the reward even where no reason was given."""
        return self.errors[index] or f"{name} could not measure it and gave no reason"


@dataclass(frozen=True, kw_only=True, eq=False)
class Ratings(Scores):
    """Ratings of a batch of images on the scale 1 bad .. 5 excellent, one entry per image in the order given."""

    std_kind: str
    """`token`: spread of the rating-token distribution; `samples`: spread over sampled answers (NaN for a greedy
    one, whose text already names the number); `none`: the source knows no spread."""
    tolerance: float = 0.0
    """How far a mean may be off because the distribution was not read whole, as over a text server."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std_kind not in STD_KINDS:
            raise ValueError(f"std_kind {self.std_kind!r}: must be one of {', '.join(STD_KINDS)}")

    @property
    def mean(self) -> Tensor:
        """[batch] float32 in 1..5, NaN where not valid: `value` under the scale's own name."""
        return self.value
