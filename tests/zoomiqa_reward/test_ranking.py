"""Order, ties and failures of a ranking."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import make_image, tiny_iqa

from zoomiqa_reward.model.ranking import rank
from zoomiqa_reward.model.ratings import Ratings, Scores
from zoomiqa_reward.rewards.metric import MetricReward

NAN = math.nan


class Known:
    """A model whose ratings are given."""

    def __init__(self, mean, std=None):
        self.mean = torch.tensor(mean)
        self.std = torch.tensor(std) if std else torch.full_like(self.mean, NAN)
        self.asked = {}

    def rate(self, images, **options):
        self.asked = options
        return Ratings(value=self.mean, std=self.std, valid=~self.mean.isnan(), std_kind="token")


def test_best_first_invalid_last_and_named():
    found = rank(Known([2.0, NAN, 4.5, NAN, 3.0]), [None] * 5)
    assert found.order == (2, 4, 0, 1, 3)
    assert found.invalid == (1, 3)
    assert found.gap == pytest.approx(1.5)
    assert found.ties == ()


def test_nan_is_not_measured_whatever_valid_says_and_infinity_is_best():
    class Careless:
        def __call__(self, images, **given):
            value = torch.tensor([0.1, NAN, 0.9, math.inf])
            return Scores(value=value, valid=torch.ones(4, dtype=torch.bool), std=torch.full((4,), NAN))

    assert rank(Careless(), [None] * 4).order == (3, 2, 0, 1)


def test_ratings_that_are_not_known_to_the_margin_are_tied_as_far_as_they_may_be_off():
    class Roughly(Known):
        def rate(self, images, **options):
            return replace(super().rate(images, **options), tolerance=0.05)

    found = rank(Roughly([3.0, 3.09, 3.25]), [None] * 3)
    assert found.ties == ((1, 0),)
    assert found.tie_margin == pytest.approx(0.1)
    assert rank(Roughly([3.0, 3.09, 3.25]), [None] * 3, tie_margin=0.2).ties == ((2, 1, 0),)


def test_equal_ratings_keep_the_order_given():
    found = rank(Known([3.0, 4.0, 3.0, 4.0]), [None] * 4)
    assert found.order == (1, 3, 0, 2)
    assert found.ties == ((1, 3), (0, 2))
    assert found.gap == 0


def test_ties_are_chains_of_neighbours_within_the_margin():
    found = rank(Known([3.00, 3.01, 3.02, 3.04, 1.0]), [None] * 5)
    assert found.ties == ((2, 1, 0),)
    assert rank(Known([3.00, 3.01]), [None] * 2, tie_margin=0.0).ties == ()


def test_kappa_prefers_what_the_model_is_sure_about():
    known = Known([3.0, 3.2], std=[0.1, 0.6])
    assert rank(known, [None] * 2).order == (1, 0)
    found = rank(known, [None] * 2, kappa=1.0)
    assert found.order == (0, 1)
    assert found.gap == pytest.approx(0.3)


def test_kappa_without_spread_and_negative_numbers_are_refused():
    with pytest.raises(ValueError, match="needs a standard deviation"):
        rank(Known([3.0, 2.0]), [None] * 2, kappa=0.5)
    with pytest.raises(ValueError, match="at least 0"):
        rank(Known([3.0]), [None], tie_margin=-1.0)
    with pytest.raises(ValueError, match="at least 0"):
        rank(Known([3.0]), [None], kappa=NAN)


@pytest.mark.parametrize("values", [[NAN], [NAN, NAN], [2.0]])
def test_fewer_than_two_measured_have_no_gap(values):
    found = rank(Known(values), [None] * len(values))
    assert math.isnan(found.gap)
    assert found.order == tuple(range(len(values)))


def test_a_model_is_read_strictly():
    known = Known([1.0])
    rank(known, [None], mode="reason")
    assert known.asked == {"mode": "reason", "strict": True}


def test_a_reward_ranks_on_its_own_scale():
    dark = MetricReward(lambda image: image.mean(), name="mean", higher_is_better=False, score_range=(0, 1))
    images = [make_image() * 0 + level for level in (0.5, 0.1, 0.9)]
    found = rank(dark, images)
    assert found.order == (1, 0, 2)
    assert found.ratings.mean.tolist() == pytest.approx([-0.5, -0.1, -0.9])


def test_permuting_the_images_permutes_the_ranking_of_a_real_model():
    images = [make_image(i, 70, 90 + 10 * i) for i in range(4)]
    found, backwards = rank(tiny_iqa(), images), rank(tiny_iqa(), images[::-1])
    assert torch.equal(backwards.ratings.mean.flip(0), found.ratings.mean)
    assert tuple(3 - index for index in backwards.order) == found.order
