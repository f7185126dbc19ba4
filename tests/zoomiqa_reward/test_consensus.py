"""The reward less the distance from the mean of its group: by hand, what is left out, and what it passes on."""

import math

import pytest
import torch
from tiny import make_image, tiny_iqa

from zoomiqa_reward import CachedReward, ConsensusReward, MetricReward, RobustReward, ZoomIQAReward
from zoomiqa_reward.rewards.base import GroupwiseError, NoReward
from zoomiqa_reward.rewards.consensus import distances_from_mean

LEVELS = (0.2, 0.3, 0.7)


def grey(level, side=8):
    return torch.full((3, side, side), level)


def brightness(fn=lambda image: image.mean()):
    return MetricReward(fn, "brightness", True, (0, 1))


def test_by_hand():
    """The mean is 0.4, so the distances are 0.2, 0.1 and 0.3 of 255 levels."""
    scores = ConsensusReward(brightness(), 0.01)([grey(level) for level in LEVELS], groups=[0, 0, 0])
    distance = [51.0, 25.5, 76.5]
    assert scores.info["distance"] == pytest.approx(distance, rel=1e-5)
    assert scores.value.tolist() == pytest.approx(
        [level - 0.01 * away for level, away in zip(LEVELS, distance, strict=True)], rel=1e-5
    )


def test_the_distance_is_the_root_of_the_mean_square():
    left, right = torch.zeros(3, 1, 4), torch.zeros(3, 1, 4)
    right[:, 0, 0] = 1.0  # the mean has 0.5 there: a quarter of the pixels is 127.5 levels away
    assert distances_from_mean([left, right]).tolist() == pytest.approx([127.5 / 2] * 2)


def test_groups_have_their_own_means_and_a_group_of_one_has_no_distance():
    images = [grey(level) for level in (*LEVELS, 0.9)]
    lq = [make_image(1), make_image(1), make_image(1), make_image(2)]
    scores = ConsensusReward(brightness(), 0.01)(images, lq=lq)
    assert scores.value[3].item() == pytest.approx(0.9)
    together = ConsensusReward(brightness(), 0.01)(images[:3], groups=["a"] * 3)
    assert torch.equal(scores.value[:3], together.value)
    order = [2, 0, 3, 1]
    shuffled = ConsensusReward(brightness(), 0.01)([images[k] for k in order], lq=[lq[k] for k in order])
    assert torch.equal(shuffled.value, scores.value[order])


def test_an_image_that_was_not_measured_moves_no_mean():
    reward = ConsensusReward(brightness(lambda image: math.nan if image.mean() > 0.8 else image.mean()), 0.01)
    scores = reward([grey(level) for level in (*LEVELS, 0.9)], groups=[0] * 4)
    alone = reward([grey(level) for level in LEVELS], groups=[0] * 3)
    assert scores.valid.tolist() == [True, True, True, False]
    assert torch.equal(scores.value[:3], alone.value)
    assert math.isnan(scores.info["distance"][3])


def test_sizes_that_differ_are_named_and_spoil_their_group_alone():
    images = [grey(0.2), grey(0.3, side=6), grey(0.4), grey(0.5)]
    scores = ConsensusReward(brightness())(images, groups=[0, 0, 1, 1])
    assert scores.valid.tolist() == [False, False, True, True]
    assert scores.errors[0] == "its group has images of 6 x 6, 8 x 8 px, which have no mean; use the reward alone"


def test_deviation_and_answers_of_the_rating_stay():
    images = [make_image(seed, 56, 56) for seed in range(2)]
    for mode in ("direct", "reason"):
        rating = ZoomIQAReward(tiny_iqa(), mode=mode)
        plain, scores = rating(images), ConsensusReward(rating)(images, lq=[images[0]] * 2)
        torch.testing.assert_close(scores.std, plain.std, rtol=0, atol=0, equal_nan=True)
        assert scores.answers == plain.answers
        away = torch.tensor(scores.info["distance"])
        torch.testing.assert_close(scores.value, plain.value - 0.065 * away, equal_nan=True)


def test_it_compares_images_so_what_rates_one_alone_refuses_it(tmp_path):
    reward = ConsensusReward(brightness())
    assert reward.groupwise
    assert reward.needs == {"lq"}
    with pytest.raises(GroupwiseError):
        CachedReward(reward, tmp_path / "cache")
    with pytest.raises(GroupwiseError):
        RobustReward(reward)
    with pytest.raises(ValueError, match="compares images within groups"):
        reward([grey(0.5)])


def test_weight_and_reward_are_its_identity():
    base = ConsensusReward(brightness())
    assert base.fingerprint == ConsensusReward(brightness()).fingerprint
    assert base.fingerprint != ConsensusReward(brightness(), 0.06).fingerprint
    assert base.fingerprint != ConsensusReward(brightness(lambda image: image.std())).fingerprint
    assert base.score_range == pytest.approx((-255 * 0.065, 1.0))


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_a_weight_that_makes_no_sense_is_refused(weight):
    with pytest.raises(ValueError, match="weight="):
        ConsensusReward(brightness(), weight)


def test_what_is_no_reward_is_refused():
    with pytest.raises(NoReward):
        ConsensusReward(lambda image: 0.5)
