"""How two sets of values of the same images differ: mean difference, win rate, intervals, and a paired test.

The test flips the sign of each difference at random: if A and B were alike, either sign would be as likely.
Source: the paired randomisation test of Fisher, The Design of Experiments; intervals as in `bootstrap`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zoomiqa_reward.runs.bootstrap import RESAMPLES, Interval, percentile_interval, resampled_means, wilson_interval

EXACT_UP_TO = 14
"""Images up to which all signs are tried."""
FLIPS = 9999
"""Random signs above that."""
LEAST_DIFFERENT = 6
"""Pairs that differ, from which on the sign-flip test can reach 5 %: 2 / 2^6. An interval of fewer is too narrow."""


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A against B, over images that both have a value for; NaN without any."""

    count: int
    infinite: int = 0
    """Images with an infinite value on a side: they are won, tied or lost, and left out of the numbers of A - B."""
    difference: float
    """Mean of A - B."""
    difference_interval: Interval
    """95 %, over images; NaN where fewer than `LEAST_DIFFERENT` differ."""
    p_value: float
    """Two-sided, of the sign-flip test; NaN with fewer than two images."""
    wins: int
    """Images where A is better by more than the tie."""
    ties: int
    losses: int
    win_rate: float
    """(wins + ties / 2) / count."""
    win_rate_interval: Interval
    """95 %; not resampled, for A that wins every time would have an interval of no width."""


def paired_difference(a: Sequence[float], b: Sequence[float], *, tie: float = 0.0, seed: int = 0) -> PairedDifference:
    """Return how the values a differ from b, one per image in the same order, higher is better.

    tie: difference up to which two values count as equal; equal infinities are a tie. Raises ValueError for other
    lengths, NaN, or a tie below 0.

    >>> paired_difference([3.0, 2.0, 4.0], [1.0, 2.0, 3.0]).win_rate  # two wins and a tie
    0.8333333333333334
    """
    sides = [np.asarray(values, dtype=np.float64) for values in (a, b)]
    if len(a) != len(b) or np.isnan([*sides[0], *sides[1]]).any() or not tie >= 0:
        raise ValueError(
            f"{len(a)} and {len(b)} values, tie={tie}: give as many values on both sides, no NaN, tie >= 0"
        )
    is_finite = np.isfinite(sides[0]) & np.isfinite(sides[1])
    apart = (sides[0] > sides[1]).astype(np.float64) - (sides[0] < sides[1])
    gaps = sides[0][is_finite] - sides[1][is_finite]
    # A hair of slack: 3.25 - 3.24 is above 0.01 in binary.
    apart[is_finite] = np.where(np.abs(gaps) <= tie + 1e-9, 0.0, np.sign(gaps))
    points = (apart + 1) / 2
    return PairedDifference(
        count=len(apart), infinite=int((~is_finite).sum()),
        difference=float(gaps.mean()) if len(gaps) else math.nan,
        difference_interval=_interval(gaps, seed),
        p_value=sign_flip_p(gaps, seed),
        wins=int((apart > 0).sum()), ties=int((apart == 0).sum()), losses=int((apart < 0).sum()),
        win_rate=float(points.mean()) if len(points) else math.nan,
        win_rate_interval=wilson_interval(float(points.sum()), len(points)),
    )  # fmt: skip


def _interval(values: NDArray[np.float64], seed: int) -> Interval:
    """Return the 95 % interval of the mean; NaN where it could exclude 0 although the sign-flip test cannot."""
    if not can_be_told(values):
        return math.nan, math.nan
    return percentile_interval(resampled_means(values[:, None], RESAMPLES, seed)[:, 0])


def can_be_told(gaps: NDArray[np.float64]) -> bool:
    """Return whether enough pairs differ for the sign-flip test to reach 5 %."""
    return int(np.count_nonzero(gaps)) >= LEAST_DIFFERENT


def sign_flip_p(gaps: NDArray[np.float64], seed: int = 0) -> float:
    """Return the two-sided p of the sign-flip test: the share of sign patterns whose mean is as far from zero.

    The measured pattern counts itself, so p is at least 2 / 2^count. NaN with fewer than two values.

    >>> sign_flip_p(np.array([1.0, 2.0, 3.0]))
    0.25
    """
    count = len(gaps)
    if count < 2:
        return math.nan
    measured = abs(gaps.sum()) * (1 - 1e-12)  # the same sum in another order of its terms
    if count <= EXACT_UP_TO:
        bits = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        return float((np.abs((2 * bits - 1) @ gaps) >= measured).mean())
    rng = np.random.default_rng(seed)
    extreme = 1
    for _ in range(FLIPS):
        extreme += abs((2 * rng.integers(0, 2, count) - 1) @ gaps) >= measured
    return float(extreme / (FLIPS + 1))
