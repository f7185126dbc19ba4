"""What a choice among candidates is worth: captured gain, regret, agreement within a pool, and paired comparison.

Arrays are (images, candidates), oriented so that higher is better, and complete: drop an image where something could
not be measured, and count it, before calling; NaN raises. Intervals are percentile bootstraps **over images**, since
the candidates of one image are no independent evidence.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from zoomiqa_reward.runs.bootstrap import LEVEL, RESAMPLES, resampled_means
from zoomiqa_reward.runs.paired import can_be_told, sign_flip_p

MIN_CANDIDATES_FOR_SRCC = 3
"""Two candidates give a correlation of 1 or -1, whatever they are."""

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A number with its bootstrap interval; NaN where nothing was there to measure."""

    value: float
    low: float
    """NaN with fewer than two images: nothing to resample."""
    high: float
    num_images: int


class PairedTest(NamedTuple):
    """How two systems differ on the same images."""

    difference: Interval
    """Mean of first - second, in the metric's oriented unit; no interval where `paired.can_be_told` is false."""
    p_sign_flip: float
    """Two-sided, of the sign-flip test: exact for few images, never below 2 / 2^images."""
    p_wilcoxon: float
    """Two-sided signed-rank test; 1 where nothing differs."""


def mean_interval(values: ArrayLike, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> Interval:
    """Return the mean over images, one value per image, with its interval.

    >>> mean_interval([2.0, 2.0, 2.0])
    Interval(value=2.0, low=2.0, high=2.0, num_images=3)
    """
    return _interval(_finite(values, 1)[:, None], lambda means: means[..., 0], resamples, level, seed)


def best_mean_worst(scores: ArrayLike, *, seed: int = 0) -> dict[str, Interval]:
    """Return `best`, `mean` and `worst` of the M candidates of each image, averaged over images.

    >>> {name: row.value for name, row in best_mean_worst([[1.0, 3.0], [5.0, 9.0]]).items()}
    {'best': 6.0, 'mean': 4.5, 'worst': 3.0}
    """
    table = _finite(scores, 2)
    rows = {"best": table.max(axis=1), "mean": table.mean(axis=1), "worst": table.min(axis=1)}
    return {name: mean_interval(row, seed=seed) for name, row in rows.items()}


def selected(judge: ArrayLike, reward: ArrayLike) -> Array:
    """Return the judge's score of the candidate that the reward likes best in each image; of equals, the first."""
    scores, choice = _same(judge, reward)
    return scores[np.arange(len(scores)), choice.argmax(axis=1)]


def captured_gain(judge: ArrayLike, reward: ArrayLike, *, seed: int = 0) -> Interval:
    """Return sum(selected - pool mean) / sum(oracle - pool mean) over images: 0 random, 1 always the best.

    A ratio of sums: an image whose candidates hardly differ hardly counts. It can be negative, and is NaN where no
    pool has any spread.

    >>> captured_gain([[0.0, 4.0], [0.0, 2.0]], [[1.0, 2.0], [2.0, 1.0]]).value  # (2 - 1) / (2 + 1)
    0.3333333333333333
    """
    scores, _ = _same(judge, reward)
    pool, oracle = _pool(scores)
    columns = np.stack([selected(judge, reward) - pool, oracle - pool], axis=1)

    def ratio(means: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(means[..., 1] > 0, means[..., 0] / means[..., 1], math.nan)

    return _interval(columns, ratio, RESAMPLES, LEVEL, seed)


def regret(judge: ArrayLike, reward: ArrayLike, *, seed: int = 0) -> Interval:
    """Return the mean over images of oracle - selected: what the choice left, in the judge's unit."""
    scores, _ = _same(judge, reward)
    return mean_interval(_pool(scores)[1] - selected(judge, reward), seed=seed)


def within_srcc(judge: ArrayLike, reward: ArrayLike, *, seed: int = 0) -> Interval:
    """Return the rank correlation (SRCC) of reward and judge among an image's candidates, averaged over images.

    An image whose candidates the reward ties all counts 0: the reward says nothing about them. Images with fewer than
    three candidates, or where the judge ties all, have no order to find and are left out.
    """
    scores, choice = _same(judge, reward)
    if scores.shape[1] < MIN_CANDIDATES_FOR_SRCC:
        return mean_interval([], seed=seed)
    varied = np.ptp(scores, axis=1) > 0
    correlations = [
        stats.spearmanr(a, b).statistic if np.ptp(b) > 0 else 0.0
        for a, b in zip(scores[varied], choice[varied], strict=True)
    ]
    return mean_interval(correlations, seed=seed)


def group_std(scores: ArrayLike, *, seed: int = 0) -> Interval:
    """Return G-STD: the standard deviation over an image's candidates (divided by their number), averaged over images.

    Source: Sun et al. 2024 (CCSR). It tells whether a pool is worth choosing from.

    >>> group_std([[1.0, 3.0], [2.0, 2.0]]).value
    0.5
    """
    return mean_interval(_finite(scores, 2).std(axis=1), seed=seed)


def paired_test(first: ArrayLike, second: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> PairedTest:
    """Return how `first` differs from `second`, one oriented value per image, in the same order of images.

    Raises ValueError for other lengths or NaN. With fewer than two images both p are NaN.
    """
    ours, other = _finite(first, 1), _finite(second, 1)
    if len(ours) != len(other):
        raise ValueError(f"{len(ours)} values against {len(other)}: a paired test needs the same images in one order")
    gap = ours - other
    interval = mean_interval(gap, resamples=resamples, seed=seed)
    if not can_be_told(gap):
        interval = interval._replace(low=math.nan, high=math.nan)
    if len(gap) < 2:
        return PairedTest(interval, math.nan, math.nan)
    p_wilcoxon = float(stats.wilcoxon(gap).pvalue) if np.any(gap != 0) else 1.0
    return PairedTest(interval, sign_flip_p(gap, seed), p_wilcoxon)


def _pool(scores: Array) -> tuple[Array, Array]:
    return scores.mean(axis=1), scores.max(axis=1)


def _interval(columns: Array, statistic: Callable[[Array], Array], resamples: int, level: float, seed: int) -> Interval:
    """Return a statistic of the columns' means over images; `columns` is (images, columns)."""
    if not len(columns):
        return Interval(math.nan, math.nan, math.nan, 0)
    value = float(statistic(columns.mean(axis=0)))
    if len(columns) < 2:
        return Interval(value, math.nan, math.nan, len(columns))
    drawn = statistic(resampled_means(columns, resamples, seed))
    drawn = drawn[np.isfinite(drawn)]
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) else (math.nan, math.nan)
    return Interval(value, float(low), float(high), len(columns))


def _same(judge: ArrayLike, reward: ArrayLike) -> tuple[Array, Array]:
    scores, choice = _finite(judge, 2), _finite(reward, 2)
    if scores.shape != choice.shape:
        raise ValueError(f"judge {scores.shape} and reward {choice.shape}: both must be (images, candidates)")
    return scores, choice


def _finite(values: ArrayLike, ndim: int) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        return np.zeros((0, 1)[:ndim])  # no images; one candidate each, so that best and worst are defined
    if array.ndim != ndim:
        raise ValueError(f"values {array.shape}: must have {ndim} axis(es), images first")
    if not np.isfinite(array).all():
        raise ValueError("values hold NaN or infinity: drop, and count, what could not be measured")
    return array
