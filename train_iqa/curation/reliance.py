"""Visual Reliance Filtering: an answer that comes out the same without the image did not rely on it.

The teacher is given its own reasoning up to the decision and goes on without the image. If box, tool, rating and (where
the endpoint offers log-probabilities) the entropy of the answer all stay within the thresholds, the answer is refused.
Source of the four differences: Zoom-IQA's framework figure; the thresholds are ours, and so is "one is enough".
"""

import math
from dataclasses import dataclass

from train_iqa.curation.written import Written, box_difference


@dataclass(frozen=True, kw_only=True)
class RelianceConfig:
    """From which change on an answer has relied on the image; one of them is enough."""

    box: float = 0.3
    """1 - IoU of the two boxes; 1 where only one answer names a box."""
    rating: float = 0.1
    """Difference of the ratings, on 1..5."""
    entropy: float = 0.2
    """Rise of the answer's mean entropy without the image, nats a token; unknown entropies decide nothing."""
    tool: bool = True
    """Whether another tool counts as a change; with the box at its default this changes nothing."""
    rounds: tuple[int, ...] = (1,)
    """Rounds that are filtered. Round 2 names no box, and its rating is round 1's, confirmed: only a number is left."""
    attempts: int = 2
    """Continuations asked for until one can be read; none readable: the answer is refused as unmeasured."""

    def __post_init__(self) -> None:
        if not (0 < self.box <= 1 and 0 < self.rating <= 4 and self.entropy > 0 and self.attempts >= 1):
            raise ValueError(
                f"reliance: box={self.box} must be in (0, 1], rating={self.rating} in (0, 4], entropy={self.entropy} "
                f"above 0, attempts={self.attempts} at least 1"
            )
        if not set(self.rounds) <= {1, 2} or not self.rounds:
            raise ValueError(
                f"reliance: rounds={self.rounds} must be of 1 and 2; to switch it off set reliance to None"
            )


@dataclass(frozen=True, kw_only=True)
class Reliance:
    """How far the answer without the image lies from the one with it."""

    box: float
    rating: float
    has_other_tool: bool
    entropy: float
    """Without the image minus with it, nats a token; NaN where the endpoint offers no log-probabilities."""
    relied: bool

    def describe(self) -> str:
        """Return the differences in words, for the report."""
        parts = [f"box {self.box:.2f}", f"rating {self.rating:.2f}"]
        parts += ["another tool"] if self.has_other_tool else []
        parts += [] if math.isnan(self.entropy) else [f"entropy {self.entropy:+.2f}"]
        return ", ".join(parts)


def compare(
    seen: Written,
    blind: Written,
    config: RelianceConfig,
    *,
    entropy_seen: float = math.nan,
    entropy_blind: float = math.nan,
) -> Reliance:
    """Return the differences between an answer and its continuation without the image."""
    box, rating = box_difference(seen.bbox, blind.bbox), abs(seen.rating - blind.rating)
    entropy, has_other_tool = entropy_blind - entropy_seen, seen.tool != blind.tool
    # 1e-9: a difference of 0.10 between ratings of two decimals must count as 0.10
    relied = box >= config.box or rating >= config.rating - 1e-9 or (config.tool and has_other_tool)
    return Reliance(
        box=box, rating=rating, has_other_tool=has_other_tool, entropy=entropy,
        relied=relied or entropy >= config.entropy,
    )  # fmt: skip
