"""The measures of an evaluation, by hand: agreement, intervals, consistency, grounding, calibration, robustness."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_image

from benchmarks.planted.statistics import filter_statistics
from train_iqa.evaluation.calibration import calibrate
from train_iqa.evaluation.correlations import correlations, krcc, pair_tables, share
from train_iqa.evaluation.grounding import grounding, iou
from train_iqa.evaluation.robustness import (
    gain_over_sampling,
    jpeg95,
    perturbed_ratings,
    rating_changes,
    resize98,
    shift1,
    spread_of_calls,
)
from zoomiqa_reward.runs.bootstrap import (
    bootstrap,
    bootstrap_share,
    group_numbers,
    merge_groups,
    percentile_interval,
    wilson_interval,
)

NAN = math.nan


def test_rank_correlations_with_ties_by_hand() -> None:
    # x = 1 2 2 3, y = 1 2 3 3. Kendall: 4 pairs agree, none disagree, one tie in x, one in y: 4 / sqrt(5 * 5).
    # Spearman: ranks 1 2.5 2.5 4 and 1 2 3.5 3.5, deviations -1.5 0 0 1.5 and -1.5 -.5 1 1: 3.75 / sqrt(4.5 * 4.5).
    x, y = [1, 2, 2, 3], [1, 2, 3, 3]
    assert krcc(x, y) == pytest.approx(0.8)
    assert correlations(x, y)["srcc_raw"] == pytest.approx(3.75 / 4.5)
    assert krcc(x, [-v for v in y]) == pytest.approx(-0.8)


def test_isotonic_ties_what_it_pools() -> None:
    # 1 2 3 against 1 3 2 fits 1 2.5 2.5: two pairs right, one tied: 2 / sqrt(2 * 3); PLCC 1.5 / sqrt(1.5 * 2).
    found = correlations([1, 2, 3], [1, 3, 2])
    assert found["krcc_isotonic"] == pytest.approx(2 / math.sqrt(6))
    assert found["plcc_isotonic"] == pytest.approx(math.sqrt(3) / 2)
    assert found["krcc_raw"] == found["krcc_logistic4"] == pytest.approx(1 / 3)


def test_a_known_logistic_curve_is_straightened() -> None:
    x = np.linspace(1, 5, 80)
    found = correlations(x, 1.2 + 3.5 / (1 + np.exp(-(x - 2.6) / 0.25)))
    assert found["plcc_raw"] < 0.95
    assert found["plcc_logistic4"] == pytest.approx(1, abs=1e-6)
    assert found["plcc_isotonic"] == pytest.approx(1)


def test_nothing_to_correlate_is_nan() -> None:
    assert all(map(math.isnan, correlations([], []).values()))
    assert all(map(math.isnan, correlations([3, 3, 3], [1, 2, 3]).values()))


def test_pairs_by_hand() -> None:
    # Of the 6 pairs 1-2, 1-3, 1-4 are right, 2-3 and 2-4 wrong, 3-4 tied in the rating (half). 2-3 lie 0.4 apart.
    ratings, mos = np.array([1.0, 3.0, 2.0, 2.0]), np.array([1.0, 2.0, 2.4, 4.0])
    groups = np.array([0, 0, 1, 1])
    right, counted = pair_tables(ratings, mos, groups)
    assert counted.tolist() == [[2, 4], [4, 2]]
    assert right.tolist() == [[2, 2], [2, 1]]
    assert share(right.sum(), counted.sum()) == pytest.approx(3.5 / 6)
    right, counted = pair_tables(ratings, mos, groups, margin=0.5)
    assert (right.sum() / 2, counted.sum() / 2) == (3.5, 5)
    assert pair_tables(ratings, mos, groups, margin=0.4)[1].sum() / 2 == 5  # a distance of just the margin is not more
    assert math.isnan(share(0, 0))


def test_a_constant_rating_is_right_half_of_the_time() -> None:
    right, counted = pair_tables(np.full(9, 3.0), np.arange(9.0), np.zeros(9, dtype=np.int64))
    assert share(right[0, 0], counted[0, 0]) == 0.5


def test_weights_of_groups_count_what_pairing_a_resample_would() -> None:
    rng = np.random.default_rng(0)
    ratings, mos, groups = rng.normal(size=12), rng.normal(size=12), np.repeat(np.arange(4), 3)
    chosen = [2, 0, 2, 2]
    index = np.concatenate([np.flatnonzero(groups == number) for number in chosen])
    pairs = [(a, b) for a, b in combinations(index, 2) if mos[a] != mos[b]]
    right = sum((mos[a] > mos[b]) == (ratings[a] > ratings[b]) for a, b in pairs)
    weights = np.bincount(chosen, minlength=4)
    tables = pair_tables(ratings, mos, groups)
    assert [weights @ table @ weights / 2 for table in tables] == [right, len(pairs)]
    low, high = bootstrap_share(*tables, draws=200)
    assert 0 <= low < tables[0].sum() / tables[1].sum() < high <= 1
    assert bootstrap_share(tables[0][:1], tables[1][:1]) is None


def test_intervals_over_references_cover_and_those_over_images_do_not() -> None:
    # 25 references with means of variance 1, six copies each: the mean's real deviation is 0.2. Counting 150 images as
    # independent makes the interval narrower by sqrt(6), which covers with P(|z| < 1.96 / 2.45) = 0.58.
    rng = np.random.default_rng(0)
    groups, hits = np.repeat(np.arange(25), 6), {"references": 0, "images": 0}
    for trial in range(100):
        values = np.repeat(rng.normal(size=25), 6)
        for name, units in (("references", groups), ("images", np.arange(150))):
            statistics = lambda index: {"mean": float(values[index].mean())}  # noqa: B023, E731 - used at once
            low, high = bootstrap(statistics, units, draws=80, seed=trial)["mean"]
            hits[name] += low <= 0 <= high
    assert 85 <= hits["references"] <= 99
    assert hits["images"] < 75


def test_bootstrap_edges() -> None:
    assert bootstrap(lambda index: {"n": 1.0}, np.zeros(5, dtype=np.int64)) == {}
    assert bootstrap(lambda index: {"n": 1.0}, np.arange(5), draws=0) == {}
    same = bootstrap(lambda index: {"n": float(len(index))}, np.arange(5), draws=20)
    assert same == {"n": (5.0, 5.0)}
    assert percentile_interval(np.arange(101), level=0.9) == pytest.approx((5, 95))
    assert all(map(math.isnan, percentile_interval([1.0, NAN, NAN])))
    assert percentile_interval([1.0, 1.0, NAN]) == (1.0, 1.0)
    assert group_numbers(["b", "a", "b"]).tolist() == [0, 1, 0]
    merged = merge_groups(np.repeat(np.arange(10), 2), limit=4)
    assert set(merged.tolist()) == {0, 1, 2, 3}
    assert (merged[::2] == merged[1::2]).all()


def test_repeated_calls_by_hand() -> None:
    # Stds 0 and sqrt(2); means 3 and 2, so the spread between images is sqrt(1/2).
    found = spread_of_calls([[3, 3], [1, 3], [2, NAN]])
    assert (found["images"], found["left_out"], found["calls"]) == (2, 1, 2)
    assert found["std_mean"] == pytest.approx(math.sqrt(2) / 2)
    assert (found["std_max"], found["share_identical"]) == (pytest.approx(math.sqrt(2)), 0.5)
    assert found["noise_to_signal"] == pytest.approx(1.0)
    assert math.isnan(spread_of_calls([[1], [2]])["std_mean"])
    assert spread_of_calls([])["images"] == 0
    assert spread_of_calls([[2.34] * 3] * 2)["std_mean"] == 0.0
    with pytest.raises(ValueError, match="same number"):
        spread_of_calls([[1, 2], [1]])


def test_gain_over_sampling_by_hand() -> None:
    # Deterministic 1 2 3 has SRCC 1. Call one says 1 3 2 (0.5), call two 2 1 3 (0.5), their mean 1.5 2 2.5 (1).
    found = gain_over_sampling([1, 2, 3, 4], [[1, 2], [3, 1], [2, 3], [NAN, 4]], [1, 2, 3, 9])
    assert (found["images"], found["left_out"]) == (3, 1)
    assert found["srcc_one_sample"] == pytest.approx(0.5)
    assert found["srcc_mean_of_samples"] == pytest.approx(1.0)
    assert found["srcc_gain"] == pytest.approx(0.5)
    assert math.isnan(gain_over_sampling([1], [[1.0]], [1])["plcc_gain"])


_SIDES = st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True).map(sorted)
_BOXES = st.tuples(_SIDES, _SIDES).map(lambda b: (b[0][0], b[1][0], b[0][1], b[1][1]))


@given(_BOXES, _BOXES)
def test_overlap_laws(first: tuple, second: tuple) -> None:
    assert iou(first, second) == iou(second, first)
    assert 0 <= iou(first, second) <= 1 + 1e-9
    area = (first[2] - first[0]) * (first[3] - first[1])
    assert iou(first, first) == (pytest.approx(1) if area > 0 else 0)


def test_grounding_by_hand() -> None:
    left, half = (0.0, 0.0, 0.5, 1.0), (0.25, 0.0, 0.75, 1.0)
    found = grounding([left, None, half, left, None, left], [[half, left], [left], [left], None, [], ()])
    # Damaged: IoU 1 (best of two), 0 (silent), 1/3.
    assert found["damaged"] == 3
    assert found["iou_mean"] == pytest.approx(4 / 9)
    assert found["iou_mean_named"] == pytest.approx(2 / 3)
    assert (found["hit_share"], found["silent_share"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (found["undamaged"], found["false_share"]) == (2, 0.5)
    assert math.isnan(grounding([], [])["iou_mean"])


def test_calibration_by_hand() -> None:
    # Errors -1 0 1 with stds 1 1 0.5: factor sqrt((1 + 0 + 4) / 3). Half-widths at 50, 80, 95 % are 0.67, 1.28 and 1.96
    # stds: within 50 % only the 0, at 80 and 95 % also the -1, the 1 never (0.98 at 95 %).
    found = calibrate([1, 2, 3, NAN, 5], [1, 1, 0.5, 1, NAN], [2, 2, 2, 2, 2], num_bins=2)
    assert found.images == 3
    assert (found.bias, found.rmse) == (0.0, pytest.approx(math.sqrt(2 / 3)))
    assert found.factor == pytest.approx(math.sqrt(5 / 3))
    assert [found.coverage[level] for level in (0.5, 0.8, 0.95)] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    # Bins by std: (0.5: error 1; 1: error -1), rms 1 over sqrt(0.625), and (1: error 0).
    assert [one.count for one in found.bins] == [2, 1]
    assert found.ence == pytest.approx((abs(1 / math.sqrt(0.625) - 1) + 1) / 2)
    assert found.error_srcc == pytest.approx(-0.5)  # ranks 2.5 1 2.5 and 2.5 2.5 1: -0.75 / 1.5


def test_half_of_the_true_std_needs_the_factor_two() -> None:
    rng = np.random.default_rng(0)
    stds = rng.uniform(0.1, 1.0, 4000)
    mos = np.full(4000, 3.0)
    ratings = mos + rng.normal(size=4000) * stds
    right, half = calibrate(ratings, stds, mos), calibrate(ratings, stds / 2, mos)
    assert right.factor == pytest.approx(1, abs=0.03)
    assert half.factor == pytest.approx(2, abs=0.06)
    assert right.coverage == pytest.approx({level: level for level in right.coverage}, abs=0.03)
    assert half.coverage[0.95] == pytest.approx(0.673, abs=0.03)  # P(|z| < 0.98)
    assert right.ence < 0.06 < 0.4 < half.ence
    assert right.error_srcc == half.error_srcc > 0.3


def test_calibration_without_enough_or_without_spread() -> None:
    assert math.isnan(calibrate([1, 2], [1, 1], [1, 2]).factor)
    zero = calibrate([1, 2, 3], [0, 0, 0], [1, 2, 4])
    assert (zero.num_zero_std, zero.coverage[0.9]) == (3, pytest.approx(2 / 3))
    assert math.isnan(zero.factor)
    with pytest.raises(ValueError, match="negative"):
        calibrate([1], [-1], [1])
    with pytest.raises(ValueError, match="same length"):
        calibrate([1], [1, 2], [1])


def test_perturbations_are_what_they_say_and_hardly_visible() -> None:
    image = make_image(0, 70, 100)
    moved = shift1(image)
    assert torch.equal(moved[:, 1:, 1:], image[:, :-1, :-1])
    assert torch.equal(moved[:, 0, 1:], image[:, 0, :-1])
    assert resize98(image).shape == (3, 69, 98)
    assert resize98(make_image(0, 2, 1)).shape == (3, 1, 1)
    smaller = resize98(image)
    assert smaller.min() >= 0
    assert (smaller.mean() - image.mean()).abs() < 0.01
    compressed = jpeg95(image)
    assert compressed.shape == image.shape
    assert 0 < (compressed - image).abs().mean() < 0.02
    assert set(perturbed_ratings(lambda x: float(x.shape[1]), image).items()) == {
        ("jpeg95", 70.0), ("shift1", 70.0), ("resize98", 69.0),
    }  # fmt: skip


def test_changes_by_hand() -> None:
    found = rating_changes(
        [3.0, 2.0, 4.0, NAN],
        [{"jpeg95": 3.1, "shift1": NAN}, {"jpeg95": 1.8, "shift1": 2.0}, {"jpeg95": NAN}, {"jpeg95": 1.0}],
    )["jpeg95"]
    assert (found["images"], found["failed"]) == (2, 1)
    assert found["change_mean"] == pytest.approx(-0.05)
    assert found["abs_mean"] == pytest.approx(0.15)
    assert found["abs_max"] == pytest.approx(0.2)
    assert found["abs_to_spread"] == pytest.approx(0.15 / math.sqrt(0.5))


def test_filters_by_hand() -> None:
    # Five plants of which four are rejected, three sound texts of which one is: precision 4/5, recall 4/5, alarms 1/3.
    planted = [True] * 5 + [False] * 3
    rejected = [True, True, True, True, False, True, False, False]
    found = filter_statistics(planted, rejected, ["blur"] * 2 + ["place"] * 3 + ["none"] * 3)
    assert found["cases"] == 8
    assert [found[name]["value"] for name in ("precision", "recall")] == [0.8, 0.8]
    assert found["f1"] == pytest.approx(0.8)
    assert (found["false_alarms"]["hits"], found["false_alarms"]["of"]) == (1, 3)
    assert {kind: (one["hits"], one["of"]) for kind, one in found["recall_by_kind"].items()} == {
        "blur": (2, 2), "place": (2, 3),
    }  # fmt: skip
    # Wilson for 8 of 10, z = 1.96: centre (0.8 + 0.19207) / 1.38415 = 0.71674, half 0.22659.
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    nothing = filter_statistics([False], [False])
    assert math.isnan(nothing["precision"]["value"])
    assert math.isnan(nothing["f1"])
    with pytest.raises(ValueError, match="2 decisions"):
        filter_statistics([True], [True, False])
    with pytest.raises(ValueError, match="3 hits of 2"):
        wilson_interval(3, 2)
