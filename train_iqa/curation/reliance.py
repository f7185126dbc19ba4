"""Visual Reliance Filtering: an answer that comes out the same without the image did not rely on it.

The teacher gets its own reasoning up to the decision and continues it, several times with the image and as often
without it. The two kinds of request differ in the image alone; neither contains people's score. The requests without
the image are the control. Two samples differ even if the image plays no part, and a teacher that was given the score
answers differently from one that was not. So an answer counts as reliant if the two kinds differ by more than the
answers of one kind differ among themselves.

Per measure (1 - IoU of the boxes, difference of the ratings, difference of the entropies) the excess is the mean
distance between the kinds less the mean distance within them (energy distance). A permutation test over all ways to
part the continuations gives the probability that the largest excess is chance. The largest excess is computed for each
way, so that several measures need no correction (Westfall and Young).
Sources: Zoom-IQA's framework figure for the measures; Szekely and Rizzo 2004 for the statistic; the control and the
thresholds are ours.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train_iqa.curation.written import Written, box_difference

Matrix = NDArray[np.float64]
Measure = Callable[["Continuation", "Continuation"], float]


@dataclass(frozen=True, kw_only=True)
class RelianceConfig:
    """From which excess on an answer has relied on the image, and how sure that must be."""

    samples: int = 7
    """Continuations with the image, and as many without it; each is a call of the teacher."""
    significance: float = 0.06
    """Largest share of the ways to part the continuations that may differ as much. Of answers from a teacher without
    eyes half of it pass at most: their two kinds are exchangeable, so that the answer sides with either alike."""
    box: float = 0.3
    """1 - IoU between the kinds less that within them; 1 - IoU is 1 where only one of two answers names a box."""
    rating: float = 0.1
    """Difference of the mean ratings, on 1..5."""
    entropy: float = 0.2
    """Difference of the answers' mean entropies, nats per token; unknown entropies decide nothing."""
    rounds: tuple[int, ...] = (1,)
    """Rounds that are filtered. Round 2 names no box, and its rating is round 1's, confirmed: only a number is left."""
    attempts: int = 2
    """Calls for one continuation until it can be read; none readable: the answer is refused as unmeasured."""

    def __post_init__(self) -> None:
        if not (0 < self.box <= 1 and 0 < self.rating <= 4 and self.entropy > 0 and self.attempts >= 1):
            raise ValueError(
                f"reliance: box={self.box} must be in (0, 1], rating={self.rating} in (0, 4], entropy={self.entropy} "
                f"above 0, attempts={self.attempts} at least 1"
            )
        if not 2 <= self.samples <= 8 or not 0 < self.significance < 1:
            raise ValueError(
                f"reliance: samples={self.samples} must be 2 to 8, significance={self.significance} in (0, 1)"
            )
        least = 2 / math.comb(2 * self.samples, self.samples)
        if self.significance < least:
            raise ValueError(
                f"reliance: {self.samples} samples a side show no significance below {least:.3g}, so that every answer "
                f"would be refused; ask for more samples, or raise significance={self.significance}"
            )
        if not set(self.rounds) <= {1, 2} or not self.rounds:
            raise ValueError(
                f"reliance: rounds={self.rounds} must be of 1 and 2; to switch it off set reliance to None"
            )


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """How the teacher went on once from the beginning of an answer."""

    written: Written
    entropy: float = math.nan
    """Mean of the answer, nats per token; NaN where the endpoint offers no log-probabilities."""


@dataclass(frozen=True, kw_only=True)
class Reliance:
    """How far the continuations without the image lie from those with it, beyond their own spread."""

    box: float
    """Mean 1 - IoU between the kinds less the mean within them."""
    rating: float
    """Mean without the image less the mean with it."""
    entropy: float
    """The same of the entropies, nats per token; NaN where one is unknown."""
    chance: float
    """Share of all ways to part the continuations whose largest excess is as large."""
    is_own: bool
    """In what differs, the answer lies nearer to the continuations that saw the image."""
    relied: bool

    def describe(self) -> str:
        """Return the figures in words, for the report."""
        parts = [f"box {self.box:+.2f}", f"rating {self.rating:+.2f}"]
        parts += [] if math.isnan(self.entropy) else [f"entropy {self.entropy:+.2f}"]
        parts += [f"by chance {self.chance:.3f}"]
        parts += [] if self.is_own else ["the answer is not that of the continuations with the image"]
        return ", ".join(parts)


def compare(
    answer: Written, seen: Sequence[Continuation], blind: Sequence[Continuation], config: RelianceConfig
) -> Reliance:
    """Return whether an answer relied on the image, by its continuations with (`seen`) and without it (`blind`).

    It did where some measure reaches its threshold, where chance explains that in `significance` of the ways at most,
    and where the answer sides with those that saw. The answer was told the score and the continuations were
    not, so it takes no part in the test of chance. Raises ValueError for unequally many continuations, or other than
    `config.samples`.
    """
    if len(seen) != config.samples or len(blind) != config.samples:
        raise ValueError(f"{len(seen)} and {len(blind)} continuations: samples={config.samples} of each are needed")
    every, ways = [*seen, *blind], _ways(config.samples)
    kinds = {"box": _box, "rating": _rating}
    if all(math.isfinite(continuation.entropy) for continuation in every):
        kinds["entropy"] = _entropy
    measures = {name: _distances(every, kind) for name, kind in kinds.items()}
    chance = _chance(list(measures.values()), ways)
    rating, entropy = (
        float(
            np.mean([read(continuation) for continuation in blind])
            - np.mean([read(continuation) for continuation in seen])
        )
        for read in (lambda continuation: continuation.written.rating, lambda continuation: continuation.entropy)
    )
    differences = {"box": float(_excess(measures["box"], ways)[0]), "rating": abs(rating), "entropy": abs(entropy)}
    # 1e-9: a difference of 0.10 between ratings of two decimals must count as 0.10
    reached = [name for name in measures if differences[name] >= getattr(config, name) - 1e-9]
    # The answer was told the score, so that its own entropy says nothing and takes no side.
    sides = [
        _side(answer, seen, blind, kinds[name]) / float(measures[name].mean()) for name in reached if name != "entropy"
    ]
    is_own = not sides or sum(sides) > 0
    return Reliance(
        box=differences["box"], rating=rating, entropy=entropy, chance=chance,
        is_own=is_own, relied=bool(reached) and chance <= config.significance and is_own,
    )  # fmt: skip


def _box(continuation: Continuation, other: Continuation) -> float:
    return box_difference(continuation.written.bbox, other.written.bbox)


def _rating(continuation: Continuation, other: Continuation) -> float:
    return abs(continuation.written.rating - other.written.rating)


def _entropy(continuation: Continuation, other: Continuation) -> float:
    return abs(continuation.entropy - other.entropy)


def _distances(every: Sequence[Continuation], measure: Measure) -> Matrix:
    return np.array([[measure(continuation, other) for other in every] for continuation in every])


def _ways(samples: int) -> Matrix:
    """Return [ways, 2 samples] 1 for the members of the first half, else 0; the first way is the actual one."""
    halves = list(itertools.combinations(range(2 * samples), samples))
    ways = np.zeros((len(halves), 2 * samples))
    np.put_along_axis(ways, np.array(halves), 1.0, axis=1)
    return ways


def _excess(distances: Matrix, ways: Matrix) -> Matrix:
    """Return [ways] the mean distance between two halves less the mean of those within them, of different members."""
    half = distances.shape[0] // 2
    others = 1 - ways
    between = ((ways @ distances) * others).sum(axis=1) / half**2
    inside = ((ways @ distances) * ways).sum(axis=1) + ((others @ distances) * others).sum(axis=1)
    excess: Matrix = between - inside / (2 * half * (half - 1))
    return excess


def _chance(measures: Sequence[Matrix], ways: Matrix) -> float:
    """Return the share of ways whose largest excess is at least that of the actual one."""
    scaled = [_excess(matrix / matrix.mean(), ways) for matrix in measures if matrix.mean() > 0]
    if not scaled:
        return 1.0
    largest = np.max(scaled, axis=0)
    return float(np.mean(largest >= largest[0] - 1e-9))


def _side(answer: Written, seen: Sequence[Continuation], blind: Sequence[Continuation], measure: Measure) -> float:
    """Return how much nearer the answer lies to the continuations that saw the image than to the others."""
    original = Continuation(written=answer)
    return sum(measure(original, continuation) for continuation in blind) / len(blind) - sum(
        measure(original, continuation) for continuation in seen
    ) / len(seen)
