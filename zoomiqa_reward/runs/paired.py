"""How two sets of values of the same images differ: mean difference, win rate, intervals, and a paired test.

The test flips the sign of each difference at random: if A and B were alike, either sign would be as likely.
Source: the paired randomisation test of Fisher, The Design of Experiments; intervals as in `bootstrap`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zoomiqa_reward.runs.bootstrap import RESAMPLES, Interval, percentile_interval, resampled_means

EXACT_UP_TO = 14
"""Images up to which all signs are tried."""
FLIPS = 9999
"""Random signs above that."""


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A against B, over images that both have a value for; NaN without any."""

    count: int
    difference: float
    """Mean of A - B."""
    difference_interval: Interval
    """95 %, over images; NaN with fewer than two."""
    p_value: float
    """Two-sided, of the sign-flip test; NaN with fewer than two images."""
    wins: int
    """Images where A is better by more than the tie."""
    ties: int
    losses: int
    win_rate: float
    """(wins + ties / 2) / count."""
    win_rate_interval: Interval


def paired_difference(a: Sequence[float], b: Sequence[float], *, tie: float = 0.0, seed: int = 0) -> PairedDifference:
    """Return how the values a differ from b, one per image in the same order, higher is better.

    tie: difference up to which two values count as equal. Raises ValueError for other lengths, values that are not
    finite, or a tie below 0.

    >>> paired_difference([3.0, 2.0, 4.0], [1.0, 2.0, 3.0]).win_rate  # two wins and a tie
    0.8333333333333334
    """
    gaps = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64) if len(a) == len(b) else np.array(math.nan)
    if not np.isfinite(gaps).all() or not tie >= 0:
        raise ValueError(f"{len(a)} and {len(b)} values, tie={tie}: give as many finite values on both sides, tie >= 0")
    # A hair of slack: 3.25 - 3.24 is above 0.01 in binary.
    signs = np.where(np.abs(gaps) <= tie + 1e-9, 0.0, np.sign(gaps))
    points = (signs + 1) / 2
    count = len(gaps)
    nothing = (math.nan, math.nan)
    means = resampled_means(np.stack([gaps, points], axis=1), RESAMPLES, seed) if count > 1 else None
    return PairedDifference(
        count=count,
        difference=float(gaps.mean()) if count else math.nan,
        difference_interval=nothing if means is None else percentile_interval(means[:, 0]),
        p_value=sign_flip_p(gaps, seed),
        wins=int((signs > 0).sum()), ties=int((signs == 0).sum()), losses=int((signs < 0).sum()),
        win_rate=float(points.mean()) if count else math.nan,
        win_rate_interval=nothing if means is None else percentile_interval(means[:, 1]),
    )  # fmt: skip


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
