"""Statistics of short lists of scores in which NaN stands for "not measured" and is left out."""

import math
from collections.abc import Iterable, Sequence


def pair_scores(values: Sequence[float], *, least_apart: int = 1, most_apart: int | None = None) -> list[float]:
    """Return for each pair of a list that should fall: 1 if it does, 0.5 for a tie, 0 if it rises.

    Pairs are those whose places differ by `least_apart` to `most_apart`; a pair with NaN gives nothing.

    >>> pair_scores([3.0, 2.0, 2.0])
    [1.0, 1.0, 0.5]
    """
    last = len(values) if most_apart is None else most_apart
    results = []
    for first, better in enumerate(values):
        for worse in values[first + least_apart : first + last + 1]:
            if math.isfinite(better) and math.isfinite(worse):
                results.append(1.0 if better > worse else 0.5 if better == worse else 0.0)
    return results


def mean(values: Iterable[float]) -> float:
    """Return the mean of what was measured, NaN if nothing was.

    >>> mean([1.0, math.nan, 3.0]), mean([])
    (2.0, nan)
    """
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def deviation(values: Sequence[float], *, unbiased: bool) -> float:
    """Return the standard deviation of what was measured (divided by n - 1 if unbiased); NaN below two values.

    >>> deviation([1.0, 3.0], unbiased=False)
    1.0
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return math.nan
    centre = mean(finite)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in finite) / (len(finite) - unbiased))


def root_mean_square(values: Iterable[float]) -> float:
    """Return the root of the mean square of what was measured, NaN if nothing was."""
    return math.sqrt(square) if math.isfinite(square := mean(value * value for value in values)) else math.nan


def ratio(numerator: float, spread: float) -> float:
    """Return part / spread: infinite where there is no spread, since nothing small compares with nothing.

    >>> ratio(0.5, 2.0), ratio(0.0, 0.0), ratio(math.nan, 1.0)
    (0.25, inf, nan)
    """
    if math.isnan(numerator) or math.isnan(spread):
        return math.nan
    return numerator / spread if spread > 0 else math.inf
