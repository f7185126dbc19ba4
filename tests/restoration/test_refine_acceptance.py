"""Refinement's verdict: what is kept, what is refused, and why."""

import math

from scripted_refinement import ASKS, CONTENT, LQ, Scripted, run

from restoration.refinement import Attempt
from restoration.refinement.acceptance import AcceptanceRule
from zoomiqa_reward.rewards.metric import MetricReward


def tried(reward, consistency=30.0, seed=0):
    return Attempt(seed=seed, reward=reward, lr_consistency=consistency, valid=True)


def test_a_try_is_kept_if_the_reward_rises_and_the_consistency_does_not_fall():
    judge = AcceptanceRule(reward=2.0, lr_consistency=30.0, floor_db=29.5, min_gain=0.25)
    for one, accepted in (
        (tried(2.25), True), (tried(2.24), False), (tried(2.0), False), (tried(3.0, 29.5), True),
        (tried(3.0, 29.4), False), (tried(3.0, math.nan), False), (Attempt(seed=0, error="no"), False),
    ):  # fmt: skip
        assert judge.accepts(one) is accepted
    assert not AcceptanceRule(reward=2.0, lr_consistency=30.0, floor_db=29.5, min_gain=0.0).accepts(tried(2.0))
    failed = Attempt(seed=9, error="out of memory")
    assert judge.best_of([tried(4.0, 20.0), failed, tried(2.5), tried(2.5, seed=3), tried(2.3)]) == tried(2.5)
    assert judge.best_of([failed, tried(1.0)]) == tried(1.0)


def test_the_verdict_says_why():
    judge = AcceptanceRule(reward=2.0, lr_consistency=30.0, floor_db=29.5, min_gain=0.25)
    failed = Attempt(seed=9, error="out of memory")
    assert judge.reason([tried(2.5, 29.8)]) == "reward 2.000 to 2.500, LR-consistency 30.00 to 29.80 dB"
    assert judge.reason([tried(3.0, 20.0), tried(2.0)]).startswith("1 of 2 raise the reward by 0.25 or more, all with")
    assert judge.reason([tried(2.1), failed]) == (
        "none of 2 raises the reward by 0.25; the best changes it by +0.100; 1 of 2 failed, the first: out of memory"
    )
    assert judge.reason([failed]) == "none of 1 could be made or measured, the first: out of memory"


def test_a_refused_region_is_tried_with_new_seeds_without_asking_again():
    iqa = Scripted(ASKS, CONTENT)
    result = run(iqa=iqa, rounds=3, min_gain=0.9)
    assert [one.accepted for one in result.history] == [True, False, False, False]
    assert len(iqa.looked) == 1
    assert [one.region for one in result.history[1:]] == [(24, 20, 48, 40)] * 3
    seeds = [attempt.seed for one in result.history for attempt in one.attempts]
    assert len(set(seeds)) == len(seeds) == 12
    assert not set(seeds) & {candidate.seed for candidate in result.start.candidates}
    assert result.gain == 0
    assert result.image.tobytes() == result.history[0].image.tobytes() != result.history[1].image.tobytes()
    assert result.history[1].reason.startswith("none of 4 raises the reward by 0.9")


def test_what_the_reward_likes_but_the_low_quality_image_contradicts_is_refused():
    def brighter(image, seed):
        large = image.repeat_interleave(2, 1).repeat_interleave(2, 2)
        rise = seed % 100 / 1e4
        return (large + rise if image.shape == LQ.shape else large + 0.3 + rise).clamp(0, 1)

    bright = MetricReward(lambda image: image.mean(), "bright", True, (0, 1))
    refused = run(brighter, bright, rounds=1, lr_consistency_slack_db=0.1)
    [_, one] = refused.history
    assert one.reward > refused.history[0].reward + 0.01
    assert one.lr_consistency < refused.history[0].lr_consistency - 1
    assert (one.accepted, refused.gain) == (False, 0)
    assert "4 of 4 raise the reward" in one.reason
    assert run(brighter, bright, rounds=1, lr_consistency_slack_db=60).kept.number == 1


def test_losses_within_the_slack_do_not_add_up():
    calls = []

    def darkening(image, seed):
        """Each time a little darker in the region."""
        calls.append(seed)
        large = image.repeat_interleave(2, 1).repeat_interleave(2, 2)
        return large - 0.03 * (len(calls) - 1) * large

    dark = MetricReward(lambda image: -image.mean(), "dark", True, (-1, 0))
    result = run(darkening, dark, rounds=3, seeds_per_round=1, lr_consistency_slack_db=8.0)
    levels = [one.lr_consistency for one in result.history]
    assert [one.accepted for one in result.history] == [True, True, False, False]
    assert levels[1] >= levels[0] - 8.0
    assert levels[2] > levels[1] - 8.0  # against the last one alone it would have passed
    assert levels[2] < levels[0] - 8.0
