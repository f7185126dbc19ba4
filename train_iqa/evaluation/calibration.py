"""Does the model's standard deviation say how far off it is? Reliability, coverage, and the factor that mends it.

A std is worth having twice over: as an order (images with a large one are those that the model gets wrong) and as a
size (90 % of people's opinions within 1.64 of it). The two are measured apart, because the second can be repaired by
one factor and the first cannot.
Source: coverage of central normal intervals as in Kuleshov et al. 2018 (calibrated regression); ENCE, the expected
normalised calibration error over bins of equal size, as in Levi et al. 2022.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, spearmanr

LEVELS = (0.5, 0.8, 0.9, 0.95)
NUM_BINS = 10
MIN_IMAGES = 3
"""Fewer say nothing about a spread."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Images of similar std."""

    count: int
    std: float
    """Root mean square of the model's stds."""
    rmse: float
    """Root mean square of its errors; equal to `std` where it is calibrated."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How errors and stds go together; numbers are NaN where fewer than 3 images have a std."""

    images: int
    """With a rating and a finite std."""
    num_zero_std: int
    """Of them, those that the model claims to know exactly: no factor helps there, they are not in `factor`."""
    bias: float
    """Mean of rating - MOS: a shift of the whole scale, which is part of every error here."""
    rmse: float
    std: float
    """Root mean square."""
    factor: float
    """What the stds would have to be multiplied by: root mean square of error / std. Above 1: too sure of itself."""
    error_srcc: float
    """Rank correlation of |error| with std; 0 or less: the std does not know where the model is wrong."""
    ence: float
    """Mean over bins of |rmse - std| / std."""
    coverage: dict[float, float]
    """Level -> share of MOS within the central normal interval of that level; calibrated: the level itself."""
    bins: tuple[Bin, ...]


def calibrate(
    ratings: Sequence[float] | NDArray[np.float64],
    stds: Sequence[float] | NDArray[np.float64],
    mos: Sequence[float] | NDArray[np.float64],
    *,
    num_bins: int = NUM_BINS,
) -> Calibration:
    """Return how well `stds` describe rating - MOS, over the images where both rating and std are finite.

    Bins hold equally many images (to one), in the order of their stds. Raises ValueError where the lengths differ, a
    MOS is not finite, or a std is negative.
    """
    x, s, y = (np.asarray(values, dtype=np.float64) for values in (ratings, stds, mos))
    if not x.shape == s.shape == y.shape or x.ndim != 1:
        raise ValueError(f"ratings {x.shape}, stds {s.shape}, mos {y.shape}: three lists of the same length are needed")
    if not np.isfinite(y).all() or (s < 0).any():
        raise ValueError("a MOS is not finite, or a std is negative: leave such images out")
    good = np.isfinite(x) & np.isfinite(s)
    errors, s = (x - y)[good], s[good]
    if len(s) < MIN_IMAGES:
        empty = dict.fromkeys(("bias", "rmse", "std", "factor", "error_srcc", "ence"), float("nan"))
        coverage = dict.fromkeys(LEVELS, float("nan"))
        return Calibration(images=len(s), num_zero_std=int((s == 0).sum()), coverage=coverage, bins=(), **empty)
    bins = _bins(errors, s, num_bins)
    ratios = [abs(bin_.rmse - bin_.std) / bin_.std for bin_ in bins if bin_.std > 0]
    positive = s > 0
    sizes = np.abs(errors)
    is_flat = np.ptp(sizes) == 0 or np.ptp(s) == 0
    return Calibration(
        images=len(s),
        num_zero_std=int((~positive).sum()),
        bias=float(errors.mean()),
        rmse=_rms(errors),
        std=_rms(s),
        factor=_rms(errors[positive] / s[positive]) if positive.any() else float("nan"),
        error_srcc=float("nan") if is_flat else float(spearmanr(sizes, s).statistic),
        ence=float(np.mean(ratios)) if ratios else float("nan"),
        coverage={level: float(np.mean(sizes <= norm.ppf((1 + level) / 2) * s)) for level in LEVELS},
        bins=bins,
    )


def _bins(errors: NDArray[np.float64], stds: NDArray[np.float64], num_bins: int) -> tuple[Bin, ...]:
    order = np.argsort(stds, kind="stable")
    parts = [members for members in np.array_split(order, min(num_bins, len(order))) if len(members)]
    return tuple(Bin(count=len(members), std=_rms(stds[members]), rmse=_rms(errors[members])) for members in parts)


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
