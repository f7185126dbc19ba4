"""What measuring returns: ratings, scores and assessments. A failed measurement is NaN with `valid=False`."""

from dataclasses import dataclass, field
from typing import Any

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
class Ratings:
    """Ratings of a batch of images, one entry for each image in the order given."""

    mean: Tensor
    """[batch] float32 in 1..5; NaN where not valid."""
    std: Tensor
    """[batch] float32, at least 0; NaN where not valid or where nothing was there to spread."""
    valid: Tensor
    """[batch] bool; False: this image could not be measured."""
    std_kind: str
    """`token`: spread of the rating-token distribution; `samples`: spread over sampled answers (NaN for a greedy
    one, whose text already names the number); `none`: the source knows no spread."""
    errors: tuple[str | None, ...] = ()
    """One entry an image: None, or why it could not be measured. Empty where the source tells no reasons."""
    answers: tuple[tuple[Assessment, ...], ...] | None = None
    """Mode `reason`: for each image what was answered, once a sample."""

    def __post_init__(self) -> None:
        if self.std_kind not in STD_KINDS:
            raise ValueError(f"std_kind {self.std_kind!r}: must be one of {', '.join(STD_KINDS)}")
        if not self.mean.shape == self.std.shape == self.valid.shape or self.mean.ndim != 1:
            shapes = [tuple(t.shape) for t in (self.mean, self.std, self.valid)]
            raise ValueError(f"mean, std and valid must all be [batch], not {shapes}")
        if self.errors and len(self.errors) != self.mean.shape[0]:
            raise ValueError(f"errors holds {len(self.errors)} entries for {self.mean.shape[0]} images")

    def __len__(self) -> int:
        return self.mean.shape[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """What a reward returns for a batch of images. Higher is better, always."""

    value: Tensor
    """[batch] float32; NaN where not valid."""
    valid: Tensor
    """[batch] bool; False: not measured. Drop the sample, never read it as a low score."""
    std: Tensor
    """[batch] float32; NaN where the reward knows no spread."""
    info: dict[str, Any] = field(default_factory=dict)
    """At least `errors`: a list with one entry an image, None or why it could not be measured. A reward that answers
    in words adds `answers`, a list of one `Assessment` an image, or None."""

    def __post_init__(self) -> None:
        if not self.value.shape == self.std.shape == self.valid.shape or self.value.ndim != 1:
            shapes = [tuple(t.shape) for t in (self.value, self.std, self.valid)]
            raise ValueError(f"value, std and valid must all be [batch], not {shapes}")

    def __len__(self) -> int:
        return self.value.shape[0]
