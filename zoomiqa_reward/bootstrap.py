"""Bootstrap intervals that resample what is independent: whole groups of values, such as all values of one image.

Source: the cluster bootstrap with percentile intervals, as in Efron and Tibshirani, An Introduction to the Bootstrap.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
LEVEL = 0.95


def percentile_interval(values: Sequence[float] | NDArray[np.float64], level: float = LEVEL) -> Interval:
    """Return the central `level` of the values; NaN twice where more than half of them are NaN or none are there."""
    drawn = np.asarray(values, dtype=np.float64)
    good = drawn[np.isfinite(drawn)]
    if len(good) == 0 or 2 * len(good) < len(drawn):
        return float("nan"), float("nan")
    low, high = np.quantile(good, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
