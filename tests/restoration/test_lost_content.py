"""A candidate without content: never chosen, and in tuning the worst of its group."""

import math

import pytest
import torch
from scripted_refinement import LQ, grainy
from scripted_refinement import run as run_refine
from skimage import data
from tiny import make_image

from restoration.metrics.registry import as_reward
from restoration.restorer.restorer import Restorer
from restoration.restorer.rng import candidate_seed
from restoration.selection.best_of_n import best_of_n
from restoration.tuning.algorithms.groups import TooManyFailures, group_advantages
from zoomiqa_reward import MetricReward, ZoomIQA, ZoomIQAReward
from zoomiqa_reward.check.ladders import blur
from zoomiqa_reward.images.content import contentless
from zoomiqa_reward.images.filters import resize_bicubic
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import Reward
from zoomiqa_reward.rewards.restorations import (
    EMPTY_SOURCE,
    as_worst,
    ask_restorations,
    lost_content,
    name_empty_sources,
)

BROKEN = 3
DEGENERATE = {
    "black": lambda x: x * 0,
    "white": lambda x: x * 0 + 1,
    "grey": lambda x: x * 0 + 0.5,
    "colour": lambda x: torch.tensor([0.1, 0.8, 0.3]).view(3, 1, 1).expand_as(x).contiguous(),
    "dark": lambda x: x * 0.03,
    "darker": lambda x: x**16 * 0.04,
    "washed out": lambda x: 0.9 + x * 0.03,
    "grey veil": lambda x: 0.5 + (x - 0.5) * 0.04,
    "blurred away": lambda x: blur(x, 15.0),
    "blurred and dark": lambda x: blur(x, 12.0) * 0.3,
}
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")


def likes_flat(image):
    return -float(image.std())


class Remembered(Reward):
    """Asks each image once: four of five candidates are the same in ten runs."""

    def __init__(self, inner):
        self.inner, self.name, self.score_range, self.known = inner, inner.name, inner.score_range, {}

    def __call__(self, images, lq=None, hr=None, prompts=None):
        for image in images:
            key = image.numpy().tobytes()
            if key not in self.known:
                found = self.inner([image])
                self.known[key] = float(found.value[0])
        value = torch.tensor([self.known[image.numpy().tobytes()] for image in images])
        return Scores(value=value, valid=~value.isnan(), std=torch.full_like(value, math.nan))


REWARDS = {
    "niqe": lambda: as_reward("niqe"),
    "a user's": lambda: MetricReward(likes_flat, "flat", True, (-1, 0)),
    "direct": lambda: ZoomIQAReward(ZoomIQA.from_pretrained("nano", device="cpu")),
    "reason": lambda: ZoomIQAReward(ZoomIQA.from_pretrained("nano", device="cpu"), "reason"),
}


def test_a_small_smooth_source_still_tells_a_blank_from_its_own_enlargement():
    source = torch.nn.functional.avg_pool2d(make_image(2, 160, 160), 4)
    enlarged = resize_bicubic(source, 160, 160)
    assert contentless(source) is None
    assert contentless(enlarged) is not None
    spoils = [spoil for name, spoil in DEGENERATE.items() if name != "blurred away"]  # the source is hardly sharper
    images = [enlarged, *(spoil(enlarged) for spoil in spoils), enlarged * math.nan]
    lost = lost_content(images, [source] * len(images))
    assert lost[0] is None
    assert all(lost[1:])


@pytest.mark.integration
@pytest.mark.parametrize("name", REWARDS)
def test_none_of_40_degenerate_images_is_chosen_of_five(name):
    reward, chosen = Remembered(REWARDS[name]()), 0
    side = 96 if name == "niqe" else 64  # two of NIQE's blocks after x2 below
    for photo in PHOTOGRAPHS:
        truth = load_image(getattr(data, photo)()[60 : 60 + 2 * side, 60 : 60 + 2 * side].copy())
        lq = torch.nn.functional.avg_pool2d(truth, 2)
        for spoil in DEGENERATE.values():
            broken = candidate_seed(0, BROKEN)

            def restore(image, seed, truth=truth, spoil=spoil, broken=broken):
                return spoil(truth).clamp(0, 1) if seed == broken else (truth * (1 - seed % 5 / 50)).clamp(0, 1)

            result = best_of_n(
                Restorer.from_pretrained(restore, scale=2, fingerprint="x"), lq, reward, n=5, progress=False
            )
            order = result.order
            chosen += order[0].valid and order[0].index == BROKEN
            bad = result.candidates[BROKEN]
            assert not bad.valid
            assert "no content" in bad.error
            assert any("never chosen" in note for note in result.notes)
    assert chosen == 0


def test_where_the_source_shows_nothing_the_reward_decides_alone():
    sky = torch.full((3, 32, 32), 0.6)
    reward = MetricReward(likes_flat, "flat", True, (-1, 0))
    assert lost_content([sky], [sky]) == [None]
    assert bool(ask_restorations(reward, [sky], [sky]).valid[0])


@pytest.mark.parametrize("name", DEGENERATE)
def test_refine_never_keeps_one_neither_at_the_start_nor_in_a_region(name):
    """The reward likes flat images best and nothing else holds it back: any LR-consistency will do."""
    spoil, at_the_start = DEGENERATE[name], {candidate_seed(0, 1), candidate_seed(0, 3)}

    def restore(image, seed):
        large = grainy(image, seed)
        spoils = seed in at_the_start or (image.shape != LQ.shape and seed % 2)
        return spoil(large).clamp(0, 1) if spoils else large

    flat = MetricReward(likes_flat, "flat", True, (-1, 0))
    result = run_refine(restore, flat, lr_consistency_slack_db=1000.0, rounds=2)
    assert [one.valid for one in result.start.candidates] == [True, False, True, False]
    assert result.start.best.index in (0, 2)
    attempts = [attempt for one in result.history for attempt in one.attempts]
    assert {bool(attempt.seed % 2) for attempt in attempts} == {True, False}
    for attempt in attempts:
        assert attempt.valid == (attempt.seed % 2 == 0)
        assert attempt.valid or attempt.error.startswith("of the region: the image has no content")
    assert all(contentless(load_image(one.image)) is None for one in result.history if one.has_image())


def scores_of(values, errors):
    value = torch.tensor(values)
    return Scores(value=value, valid=~value.isnan(), std=torch.full_like(value, math.nan), errors=tuple(errors))


EMPTY = "the image has no content: it is black"


def test_it_is_the_worst_of_its_group_by_one_spread():
    found = as_worst(scores_of([3.0, math.nan, 1.0, 5.0], [None, EMPTY, None, None]), ["a", "a", "a", "b"])
    assert found.value.tolist() == [3.0, 0.0, 1.0, 5.0]
    assert found.errors[1] == EMPTY
    advantages = group_advantages(found, ["a", "a", "a", "b"], max_failure_rate=0.0)
    assert int(advantages.value[:3].argmin()) == 1
    assert advantages.num_failed == 0


def test_it_is_worse_than_a_group_without_spread():
    found = as_worst(scores_of([2.0, math.nan, 2.0], [None, EMPTY, None]), "aaa", width=4.0)
    assert found.value.tolist() == pytest.approx([2.0, 1.8, 2.0])
    found = as_worst(scores_of([2.0, math.nan, 2.0], [None, EMPTY, None]), "aaa")
    assert float(found.value[1]) < 2.0


def test_a_group_without_any_content_carries_no_signal_and_counts_as_failures():
    found = as_worst(scores_of([math.nan, math.nan, 1.0, 2.0], [EMPTY, EMPTY, None, None]), "aabb")
    assert found.valid.tolist() == [False, False, True, True]
    assert group_advantages(found, "aabb", max_failure_rate=0.5).num_failed == 2


def test_crops_that_show_nothing_do_not_end_a_run():
    """A crop of an even sky cannot be measured, whatever restores it; a lost scene or a broken reward still ends it."""
    sky = torch.full((3, 28, 28), 0.6)
    scene = make_image(0, 28, 28)
    enlarged = [resize_bicubic(lq, 112, 112) for lq in (sky, sky, scene, scene)]
    lost = [*enlarged[:2], torch.full((3, 112, 112), 0.5), enlarged[3]]
    found = scores_of([math.nan, math.nan, 1.0, 2.0], [f"nano: {EMPTY}", f"nano: {EMPTY}", None, None])
    named = name_empty_sources(found, enlarged, [sky, sky, scene, scene])
    assert [why and why.startswith(EMPTY_SOURCE) for why in named.errors] == [True, True, None, None]
    assert group_advantages(named, "aabb", max_failure_rate=0.0).kept.tolist() == [False, False, True, True]
    broken = scores_of([math.nan, math.nan, math.nan, 2.0], ["no answer", *[f"nano: {EMPTY}"] * 2, None])
    named = name_empty_sources(broken, lost, [scene, sky, scene, scene])
    with pytest.raises(TooManyFailures, match=r"2 of 4 .*no answer"):
        group_advantages(named, "aabb", max_failure_rate=0.25)


def test_what_failed_for_another_reason_stays_missing():
    found = as_worst(scores_of([math.nan, 1.0, 2.0], ["no answer", None, None]), "aaa")
    assert found.valid.tolist() == [False, True, True]
