"""How well ratings agree with people: correlations raw and after two fits, and shares of pairs in the right order.

The fits are made on the very images that they are judged on, so they flatter; the three kinds stand side by side.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeWarning
from scipy.stats import NearConstantInputWarning, kendalltau
from sklearn.isotonic import IsotonicRegression

from train_iqa.evaluation.correlations import isotonic_correlations, logistic_correlations, raw_correlations

Array = NDArray[np.float64]
_BLOCK_ROWS = 512  # rows of the table of pairs that are in memory at once


def krcc(ratings: Sequence[float] | Array, mos: Sequence[float] | Array) -> float:
    """Return Kendall's tau-b in -1..1, NaN where one side is constant or fewer than 2 values are there.

    >>> round(krcc([1, 2, 3], [1, 3, 2]), 6)      # two of three pairs right
    0.333333
    """
    x, y = np.asarray(ratings, dtype=np.float64), np.asarray(mos, dtype=np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(kendalltau(x, y).statistic)


def isotonic_fit(ratings: Array, mos: Array) -> Array:
    """Return what the best non-decreasing step function of the ratings gives for each of them."""
    return IsotonicRegression().fit(ratings, mos).predict(ratings)


def correlations(ratings: Sequence[float] | Array, mos: Sequence[float] | Array) -> dict[str, float]:
    """Return `plcc_raw`, `srcc_raw`, `krcc_raw`, and the same ending in `_logistic4` and `_isotonic`.

    The logistic curve is monotone, so only its PLCC differs. NaN where there is nothing to correlate: fewer than 2
    images, or one side constant; where the curve cannot be fitted, only its PLCC. NaN values raise ValueError.
    """
    x, y = np.asarray(ratings, dtype=np.float64), np.asarray(mos, dtype=np.float64)
    found: dict[str, float] = {}
    for kind, correlate in (
        ("raw", raw_correlations), ("logistic4", logistic_correlations), ("isotonic", isotonic_correlations),
    ):  # fmt: skip
        with warnings.catch_warnings():
            # With hardly more images than the curve has parameters, as in a resample, its covariance, which nobody
            # reads, is not to be had; and it may come out nearly flat, which its correlation then says.
            warnings.simplefilter("ignore", OptimizeWarning)
            warnings.simplefilter("ignore", NearConstantInputWarning)
            plcc, srcc = correlate(x, y) if len(x) >= 2 else (float("nan"), float("nan"))
        fitted = isotonic_fit(x, y) if kind == "isotonic" and len(x) >= 2 else x
        found |= {f"plcc_{kind}": plcc, f"srcc_{kind}": srcc, f"krcc_{kind}": krcc(fitted, y)}
    return found


def pair_tables(
    ratings: Array, mos: Array, groups: NDArray[np.int64], *, margin: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (right, counted), both [groups, groups]: ordered pairs whose MOS differ by more than `margin`.

    A pair counts as right where the ratings differ the same way, as half right where they are equal: a constant rating
    is right half of the time, like a coin. `groups` are numbers 0 .. of each image. Entry (a, b) is about pairs with
    the first image in a and the second in b, so the sum of all counts every pair twice.
    """
    count = int(groups.max()) + 1 if len(groups) else 0
    right, counted = np.zeros((count, count)), np.zeros((count, count))
    for start in range(0, len(mos), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        apart = mos[rows, None] - mos[None]
        is_counted = np.abs(apart) > margin + 1e-9  # labels are sums of rounded numbers
        agrees = 0.5 * (1 + np.sign(apart) * np.sign(ratings[rows, None] - ratings[None])) * is_counted
        cells = (groups[rows, None] * count + groups[None]).ravel()
        right += np.bincount(cells, weights=agrees.ravel(), minlength=count * count).reshape(count, count)
        counted += np.bincount(cells, weights=is_counted.ravel(), minlength=count * count).reshape(count, count)
    return right, counted


def share(right: float | np.floating, counted: float | np.floating) -> float:
    """Return right / counted, NaN where nothing was counted."""
    return float(right / counted) if counted else float("nan")
