"""Bootstraps: intervals and deviations by resampling what is independent, references where they are known, else images.

Twenty distortions of one photograph are not twenty photographs; an interval over images would be far too narrow.
Source: the cluster bootstrap with percentile intervals, as in Efron and Tibshirani, An Introduction to the Bootstrap.
A share of 0 or 1 has no spread to resample, so a share has the score interval of Wilson 1927: `wilson_interval`.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
LEVEL = 0.95
RESAMPLES = 2000
"""Of means, which cost nothing."""
MAX_PAIR_GROUPS = 1000
"""Above it groups are thrown together at random for the intervals of pair agreement: its table is square."""


def group_numbers(names: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return 0, 1, ... for the names, equal numbers for equal names, in order of first appearance.

    >>> group_numbers(["a", "b", "a"]).tolist()
    [0, 1, 0]
    """
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def percentile_interval(values: Sequence[float] | NDArray[np.float64], level: float = LEVEL) -> Interval:
    """Return the central `level` of the values; NaN twice where more than half of them are NaN or none are there."""
    drawn = np.asarray(values, dtype=np.float64)
    good = drawn[np.isfinite(drawn)]
    if len(good) == 0 or 2 * len(good) < len(drawn):
        return float("nan"), float("nan")
    low, high = np.quantile(good, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson_interval(hits: float, count: int) -> Interval:
    """Return the 95 % interval of a share of `count` independent cases; NaN twice where there are none.

    hits: half a hit is a tie, for which the interval is wider than it must be.

    >>> [round(side, 4) for side in wilson_interval(0, 10)]
    [0.0, 0.2775]
    """
    if not 0 <= hits <= count:
        raise ValueError(f"{hits} hits of {count} cases: at least 1 case is needed, and 0 to {count} hits")
    if count == 0:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, square = hits / count, z**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(
    statistics: Callable[[NDArray[np.int64]], dict[str, float]],
    groups: NDArray[np.int64],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return name -> 95 % interval of each statistic over resampled groups, all from the same draws.

    `statistics` gets the indices of a resample: groups are resampled with replacement; a group drawn twice appears
    twice. With fewer than 2 groups there is nothing to resample: no intervals are returned. draws=0 gives none either.
    """
    members = [np.flatnonzero(groups == number) for number in range(int(groups.max()) + 1)] if len(groups) else []
    if len(members) < 2 or draws == 0:
        return {}
    rng = np.random.default_rng(seed)
    drawn: list[dict[str, float]] = []
    for _ in range(draws):
        chosen = rng.integers(0, len(members), len(members))
        drawn.append(statistics(np.concatenate([members[number] for number in chosen])))
    return {name: percentile_interval([resample[name] for resample in drawn]) for name in drawn[0]}


def bootstrap_share(
    right: NDArray[np.float64], counted: NDArray[np.float64], *, draws: int = 1000, seed: int = 0
) -> Interval | None:
    """Return the 95 % interval of sum(right) / sum(counted) over resampled groups, None with fewer than 2 groups.

    Both are [groups], or [groups, groups] as `agreement.pair_tables` gives them: a group drawn w times then meets
    itself and every other one w times as often, which is what pairing all images of the resample would count.
    """
    count = len(counted)
    if count < 2 or draws == 0:
        return None
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        weights = np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)
        sums = [weights @ table @ weights if table.ndim == 2 else weights @ table for table in (right, counted)]
        values.append(float(sums[0] / sums[1]) if sums[1] else float("nan"))
    return percentile_interval(values)


def merge_groups(groups: NDArray[np.int64], limit: int = MAX_PAIR_GROUPS, seed: int = 0) -> NDArray[np.int64]:
    """Return the groups thrown together at random into at most `limit` (groups themselves where they are as few)."""
    count = int(groups.max()) + 1 if len(groups) else 0
    if count <= limit:
        return groups
    return np.random.default_rng(seed).permutation(count)[groups] % limit


def resampled_means(columns: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Return (resamples, columns): means over rows drawn with replacement, by how often each was drawn."""
    count = len(columns)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn @ columns / count


def bootstrap_deviation(values: Sequence[float], again: Sequence[float] | None = None, seed: int = 0) -> float:
    """Return the standard deviation of the mean under resampling of the images, over 2000 resamples.

    values: a number per image. again: the same by other candidates; each image drawn then takes either number, so
    that images which are all alike do not hide how much candidates vary.

    >>> bootstrap_deviation([3.0, 3.0, 3.0])
    0.0
    """
    rng = np.random.default_rng(seed)
    table = np.asarray([values] if again is None else [values, again], dtype=np.float64)
    images = rng.integers(0, len(values), (RESAMPLES, len(values)))
    candidates = rng.integers(0, len(table), images.shape)
    return float(table[candidates, images].mean(axis=1).std())
