"""Agreement of predicted ratings with people's: PLCC and SRCC, raw and after the two fits that the field uses.

A fit on the test set itself flatters: isotonic regression, which the official Zoom-IQA evaluator applies, adds about
0.01 PLCC. So the three kinds are always reported side by side, under their names.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.stats import pearsonr, spearmanr
from sklearn.isotonic import IsotonicRegression

_MAX_FIT_STEPS = 20_000  # of the logistic curve; the default of 1000 gives up on plain data of a few thousand points


class Correlations(NamedTuple):
    """Two correlation coefficients in -1..1; NaN where one side is constant or the fit failed."""

    plcc: float
    srcc: float


def raw_correlations(predictions: Sequence[float], targets: Sequence[float]) -> Correlations:
    """Return PLCC and SRCC of the values as they are.

    Raises ValueError if the two differ in length, hold fewer than 2 values, or hold NaN or infinity: measurements
    that failed must be dropped, and counted, before.

    >>> plcc, srcc = raw_correlations([1.0, 2.0, 3.0], [1.0, 3.0, 2.0])
    >>> round(plcc, 6), round(srcc, 6)
    (0.5, 0.5)
    """
    return _correlate(*_checked(predictions, targets))


def isotonic_correlations(predictions: Sequence[float], targets: Sequence[float]) -> Correlations:
    """Return PLCC and SRCC after a non-decreasing step function has been fitted from predictions to targets.

    SRCC changes too, because the steps tie neighbours. Raises ValueError as `raw_correlations`.
    Source: what the official Zoom-IQA evaluator reports.
    """
    x, y = _checked(predictions, targets)
    return _correlate(IsotonicRegression().fit(x, y).predict(x), y)


def logistic_correlations(predictions: Sequence[float], targets: Sequence[float]) -> Correlations:
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


def _checked(predictions: Sequence[float], targets: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
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
