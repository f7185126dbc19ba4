"""How well ratings agree with people: correlations, raw and after two fits, and shares of pairs in the right order.

A fit on the test set itself makes the agreement look better: isotonic regression, which the official Zoom-IQA evaluator
applies, gives pure noise a PLCC of 0.2 with 100 images. So all three kinds (raw, logistic, isotonic) are always
reported, under their names.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.stats import NearConstantInputWarning, kendalltau, pearsonr, spearmanr
from sklearn.isotonic import IsotonicRegression

_MAX_FIT_STEPS = 20_000  # of the logistic curve; the default of 1000 gives up on plain data of a few thousand points


Array = NDArray[np.float64]
Numbers = Sequence[float] | Array


class Correlations(NamedTuple):
    """Two correlation coefficients in -1..1; NaN where one side is constant or the fit failed."""

    plcc: float
    srcc: float


def raw_correlations(predictions: Numbers, targets: Numbers) -> Correlations:
    """Return PLCC and SRCC of the values as they are.

    Raises ValueError if the two differ in length, hold fewer than 2 values, or hold NaN or infinity: measurements
    that failed must be dropped, and counted, before.

    >>> plcc, srcc = raw_correlations([1.0, 2.0, 3.0], [1.0, 3.0, 2.0])
    >>> round(plcc, 6), round(srcc, 6)
    (0.5, 0.5)
    """
    return _correlate(*_checked(predictions, targets))


def isotonic_correlations(predictions: Numbers, targets: Numbers) -> Correlations:
    """Return PLCC and SRCC after a non-decreasing step function has been fitted from predictions to targets.

    SRCC changes too, because the steps tie neighbours. Raises ValueError as `raw_correlations`.
    Source: what the official Zoom-IQA evaluator reports.
    """
    x, y = _checked(predictions, targets)
    return _correlate(IsotonicRegression().fit(x, y).predict(x), y)


def logistic_correlations(predictions: Numbers, targets: Numbers) -> Correlations:
    """Return PLCC after a four-parameter logistic curve has been fitted from predictions to targets, and raw SRCC.

    The curve is monotone, so it leaves the ranks, and SRCC, alone. Raises ValueError as `raw_correlations`.
    Source: the mapping that VQEG's reports apply before PLCC.
    """
    x, y = _checked(predictions, targets)
    raw = _correlate(x, y)
    if np.isnan(raw.plcc):
        return raw
    low, high = (y.min(), y.max()) if raw.srcc >= 0 else (y.max(), y.min())
    try:
        with warnings.catch_warnings():  # only the curve is wanted; four points leave no covariance
            warnings.simplefilter("ignore", OptimizeWarning)
            parameters, _ = curve_fit(_logistic, x, y, p0=(high, low, x.mean(), x.std()), maxfev=_MAX_FIT_STEPS)
    except (RuntimeError, TypeError):  # no convergence; fewer points than parameters
        return Correlations(plcc=float("nan"), srcc=raw.srcc)
    return Correlations(plcc=_correlate(_logistic(x, *parameters), y).plcc, srcc=raw.srcc)


def _logistic(x: np.ndarray, high: float, low: float, centre: float, width: float) -> np.ndarray:
    exponent = np.clip((centre - x) / (abs(width) + 1e-12), -50.0, 50.0)  # exp must not overflow while the fit searches
    return low + (high - low) / (1.0 + np.exp(exponent))


def _checked(predictions: Numbers, targets: Numbers) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(predictions, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(f"predictions {x.shape} and targets {y.shape}: two lists of the same length >= 2 are needed")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("predictions or targets hold NaN or infinity; drop, and count, what could not be measured")
    return x, y


def _correlate(x: np.ndarray, y: np.ndarray) -> Correlations:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlations(plcc=float("nan"), srcc=float("nan"))
    return Correlations(plcc=float(pearsonr(x, y)[0]), srcc=float(spearmanr(x, y)[0]))


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
    results: dict[str, float] = {}
    for kind, correlate in (
        ("raw", raw_correlations), ("logistic4", logistic_correlations), ("isotonic", isotonic_correlations),
    ):  # fmt: skip
        with warnings.catch_warnings():
            # With hardly more images than the curve has parameters, as in a resample, its covariance cannot be
            # computed, which is not used; and the curve may be nearly flat, which shows in its correlation.
            warnings.simplefilter("ignore", OptimizeWarning)
            warnings.simplefilter("ignore", NearConstantInputWarning)
            plcc, srcc = correlate(x, y) if len(x) >= 2 else (float("nan"), float("nan"))
        fitted = isotonic_fit(x, y) if kind == "isotonic" and len(x) >= 2 else x
        results |= {f"plcc_{kind}": plcc, f"srcc_{kind}": srcc, f"krcc_{kind}": krcc(fitted, y)}
    return results


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
