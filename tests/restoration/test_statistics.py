"""What a choice is worth: every formula by hand, and the laws of its intervals."""

import math

import numpy as np
import pytest

from restoration.evaluation.statistics import (
    best_mean_worst,
    captured_gain,
    group_std,
    mean_interval,
    paired_test,
    regret,
    selected,
    within_srcc,
)

JUDGE = [[1.0, 2.0, 6.0], [4.0, 4.0, 1.0]]
REWARD = [[0.1, 0.9, 0.5], [0.2, 0.2, 0.1]]
"""Picks 2.0 (pool mean 3, oracle 6), and of equals the first: 4.0 (pool mean 3, oracle 4)."""


def test_choice_by_hand():
    """Gain (2 - 3) + (4 - 3) = 0 of (6 - 3) + (4 - 3) = 4; regret ((6 - 2) + 0) / 2.

    Ranks 1 2 3 against 1 3 2: SRCC 0.5. Ranks 2.5 2.5 1 on both sides: 1. Mean 0.75.
    """
    assert selected(JUDGE, REWARD).tolist() == [2.0, 4.0]
    assert captured_gain(JUDGE, REWARD).value == 0
    assert regret(JUDGE, REWARD).value == 2
    assert within_srcc(JUDGE, REWARD).value == pytest.approx(0.75)
    assert within_srcc(JUDGE, REWARD).num_images == 2


def test_gain_is_a_ratio_of_sums():
    """Images gain 1 of 1 and -3 of 3: -2 of 4, where the mean of the ratios would be 0."""
    judge = [[0.0, 2.0], [0.0, 6.0]]
    assert captured_gain(judge, [[0, 1], [1, 0]]).value == pytest.approx((1 - 3) / (1 + 3))
    assert captured_gain(judge, judge).value == 1
    assert captured_gain(judge, -np.array(judge)).value == -1


def test_best_mean_worst_and_group_std_by_hand():
    """Deviations of 1 2 6 from 3: variance (4 + 1 + 9) / 3; of 4 4 1 from 3: (1 + 1 + 4) / 3."""
    rows = best_mean_worst(JUDGE)
    assert {name: row.value for name, row in rows.items()} == {"best": 5.0, "mean": 3.0, "worst": 1.0}
    assert group_std(JUDGE).value == pytest.approx((math.sqrt(14 / 3) + math.sqrt(2)) / 2)


def test_random_choice_captures_nothing_and_the_interval_says_so():
    rng = np.random.default_rng(0)
    found = captured_gain(rng.normal(size=(400, 8)), rng.normal(size=(400, 8)))
    assert found.low < 0 < found.high
    assert found.high - found.low < 0.2


def test_the_interval_is_that_of_the_mean():
    """400 values of deviation 1: the mean's 95 % interval is 2 * 1.96 / 20 wide."""
    values = np.random.default_rng(1).normal(size=400)
    found = mean_interval((values - values.mean()) / values.std())
    assert found.value == pytest.approx(0, abs=1e-12)
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.1)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, level=0.5).high < mean_interval(values).high


def test_paired_test_sees_a_small_steady_difference():
    rng = np.random.default_rng(2)
    first = rng.normal(0, 5, size=60)
    test = paired_test(first + 0.2 + rng.normal(0, 0.3, size=60), first)
    assert test.difference.low > 0
    assert test.p_sign_flip < 0.01
    assert test.p_wilcoxon < 0.01
    swapped = paired_test(first, first)
    assert (swapped.difference.value, swapped.p_sign_flip, swapped.p_wilcoxon) == (0, 1, 1)


def test_wilcoxon_by_hand():
    """Five positive differences: all signs equal in 2 of 2^5 ways, so no test may say less."""
    test = paired_test([1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5)
    assert test.p_wilcoxon == pytest.approx(2 / 32)
    assert test.p_sign_flip == pytest.approx(2 / 32)


def test_no_interval_excludes_zero_where_the_signs_cannot_tell():
    few = paired_test([1.0, 2.0, 3.0, 4.0, 5.0, 0.0], [0.0] * 6)  # six pairs, of which five differ
    assert (few.difference.value, few.p_sign_flip) == (2.5, pytest.approx(2 / 32))
    assert math.isnan(few.difference.low)
    assert math.isnan(few.difference.high)
    enough = paired_test([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.0] * 6)
    assert enough.p_sign_flip == pytest.approx(2 / 64)
    assert enough.difference.low > 0


def test_nothing_to_measure_is_nan():
    assert math.isnan(captured_gain([[1.0, 1.0]] * 3, [[1.0, 2.0]] * 3).value)
    assert math.isnan(within_srcc([[1.0, 2.0]] * 3, [[1.0, 2.0]] * 3).value)
    assert within_srcc([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]], [[1.0, 2.0, 3.0]] * 2).num_images == 1


def test_a_reward_that_ties_all_candidates_has_no_rank_correlation_rather_than_no_say():
    found = within_srcc([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]], [[1.0, 2.0, 3.0], [7.0, 7.0, 7.0]])
    assert (found.value, found.num_images) == (0.5, 2)
    for found in (mean_interval([]), regret([], []), captured_gain([], []), group_std([])):
        assert (math.isnan(found.value), found.num_images) == (True, 0)
    single = mean_interval([2.0])
    assert single.value == 2
    assert math.isnan(single.low)
    assert math.isnan(paired_test([1.0], [0.0]).p_wilcoxon)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        mean_interval([1.0, math.nan])
    with pytest.raises(ValueError, match=r"must be \(images, candidates\)"):
        captured_gain([[1.0, 2.0]], [[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="same images"):
        paired_test([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="images first"):
        mean_interval([[1.0]])
