"""Correlations by hand, and the laws that tie the three kinds together."""

import math

import numpy as np
import pytest

from train_iqa.evaluation.correlations import isotonic_correlations, logistic_correlations, raw_correlations


def test_raw_by_hand() -> None:
    # x = 1 2 3, y = 1 3 2: deviations -1 0 1 and -1 1 0, so both are 1 / (sqrt 2 sqrt 2).
    assert raw_correlations([1, 2, 3], [1, 3, 2]) == pytest.approx((0.5, 0.5))


def test_isotonic_by_hand() -> None:
    # Pooling the violators 3, 2 gives the fit 1, 2.5, 2.5 against 1, 3, 2: PLCC = 1.5 / sqrt(1.5 * 2).
    assert isotonic_correlations([1, 2, 3], [1, 3, 2]).plcc == pytest.approx(math.sqrt(3) / 2)
    # The fit 1, 7/3, 7/3, 7/3 against 1, 3, 2, 2: PLCC = (4/3) / sqrt(4/3 * 2). From y to x it would be another number.
    assert isotonic_correlations([1, 2, 3, 4], [1, 3, 2, 2]).plcc == pytest.approx(math.sqrt(2 / 3))


def test_a_logistic_relation_is_straightened() -> None:
    x = np.linspace(1, 5, 60)
    y = 1 + 4 / (1 + np.exp(-(x - 3) / 0.3))
    assert raw_correlations(x, y).plcc < 0.97
    assert logistic_correlations(x, y) == pytest.approx((1.0, 1.0), abs=1e-9)
    assert logistic_correlations(x, -y) == pytest.approx((1.0, -1.0), abs=1e-9)


def test_fits_on_the_same_data_only_flatter() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(1, 5, 300)
    y = x + rng.normal(0, 1, 300)
    raw, logistic, isotonic = (f(x, y) for f in (raw_correlations, logistic_correlations, isotonic_correlations))
    assert raw.plcc <= logistic.plcc + 1e-9
    assert raw.plcc <= isotonic.plcc
    assert logistic.srcc == raw.srcc


@pytest.mark.parametrize("correlate", [raw_correlations, isotonic_correlations, logistic_correlations])
def test_no_measurement_is_nan_and_bad_input_is_refused(correlate: object) -> None:
    assert all(map(math.isnan, correlate([3, 3, 3], [1, 2, 3])))
    assert all(map(math.isnan, correlate([1, 2, 3], [4, 4, 4])))
    with pytest.raises(ValueError, match="same length"):
        correlate([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match=">= 2"):
        correlate([1], [1])
    with pytest.raises(ValueError, match="NaN"):
        correlate([1, math.nan], [1, 2])


def test_too_few_points_for_the_logistic_curve() -> None:
    plcc, srcc = logistic_correlations([1, 2, 3], [1, 3, 2])
    assert math.isnan(plcc)
    assert srcc == pytest.approx(0.5)
