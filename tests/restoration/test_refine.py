"""Refinement's loop: what changes, when it stops, failures, and what cannot be refined."""

import itertools
import json
import math

import pytest
import torch
from scripted_refinement import ASKS, CONTENT, LQ, Scripted, answer, grainy, near_target, nearness, run
from tiny import make_image

from restoration.metrics.fidelity import lr_consistency
from restoration.refinement import refine
from restoration.selection.best_of_n import best_of_n
from restoration.selection.candidate_loop import pixels_digest
from zoomiqa_reward.images import load_image
from zoomiqa_reward.rewards.consensus import ConsensusReward
from zoomiqa_reward.rewards.metric import MetricReward


def test_only_the_region_changes_and_every_number_is_that_of_the_8_bit_image():
    iqa = Scripted(ASKS, answer([0.5, 0.5, 1, 1]))
    result = run(iqa=iqa, rounds=2)
    start, *later = result.history
    assert [one.accepted for one in result.history] == [True, True, True]
    assert iqa.looked == [(3, 160, 192)] * 2  # nobody asks about the LR image where no text is taken
    plain = best_of_n(grainy, LQ, nearness(), n=4, seed=0, progress=False)
    assert start.pixels == plain.best.pixels
    before = load_image(start.image)
    for one, box in zip(later, [(24, 20, 48, 40), (48, 40, 96, 80)], strict=True):
        assert one.region == box
        after = load_image(one.image)
        assert one.reward == pytest.approx(near_target(after), abs=1e-6)
        assert one.lr_consistency == pytest.approx(lr_consistency(after, LQ))
        assert one.pixels == pixels_digest(one.image)
        assert one.reward == max(attempt.reward for attempt in one.attempts)
        left, top, right, bottom = (2 * side for side in box)
        changed = (after != before).any(dim=0)
        assert changed[top:bottom, left:right].float().mean() > 0.95
        changed[max(top - 20, 0) : bottom + 20, max(left - 20, 0) : right + 20] = False
        assert not changed.any()
        before = after
    assert result.stopped == "budget"
    assert result.reward == later[-1].reward > later[0].reward > start.reward
    assert result.gain == result.reward - start.reward
    assert torch.equal(load_image(result.image), before)


def test_it_stops_when_the_model_asks_for_no_closer_look():
    result = run(iqa=Scripted(ASKS, CONTENT), rounds=5)
    assert [(one.number, one.stop) for one in result.history] == [(0, None), (1, None), (2, "satisfied")]
    assert (result.stopped, result.kept.number) == ("satisfied", 1)
    with pytest.raises(ValueError, match="round 2 made no image: the model asks for no closer look"):
        _ = result.history[-1].image
    never = run(iqa=Scripted(CONTENT))
    assert (never.stopped, len(never.history), never.gain) == ("satisfied", 2, 0)
    torn = run(iqa=Scripted(("garbage",)))
    assert torn.stopped == "unreadable"
    assert "missing <answer>" in torn.history[-1].reason


def test_a_deterministic_restorer_runs_once_a_round_and_stops_when_it_cannot_help():
    calls = []

    def fixed(image):
        calls.append(1)
        return image.repeat_interleave(2, 1).repeat_interleave(2, 2)

    result = run(fixed, rounds=5)
    assert len(calls) == 2
    assert result.stopped == "deterministic"
    assert [len(one.attempts) for one in result.history] == [0, 1]
    assert len(result.start.candidates) == 1


def test_the_gain_of_a_reward_that_compares_images_is_that_of_each_kept_round(tmp_path):
    """Values of two groups differ in what they are compared with, so their difference means nothing."""
    reward = ConsensusReward(nearness(), 1e-4)
    result = run(reward=reward, iqa=Scripted(ASKS, answer([0.5, 0.5, 1, 1])), rounds=2, out=tmp_path / "run")
    kept = [one for one in result.history[1:] if one.accepted]
    assert kept
    total, images = 0.0, [one for one in result.history if one.accepted]
    for before, one in itertools.pairwise(images):
        assert one.before != before.reward  # another group
        assert one.reward >= one.before
        total += one.reward - one.before
    assert result.gain == pytest.approx(total)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["gain"] == pytest.approx(total)
    again = run(reward=reward, iqa=Scripted(ASKS, answer([0.5, 0.5, 1, 1])), rounds=2, out=tmp_path / "run")
    assert again.gain == result.gain
    assert all(math.isnan(one.before) for one in run(rounds=1).history)


def test_failures_are_named_and_never_kept():
    def moody(image, seed):
        if image.shape != LQ.shape and seed % 2:
            raise RuntimeError("out of memory")
        return grainy(image, seed)

    def odd(image):
        return near_target(image) if near_target(image) < 0.93 else math.nan

    result = run(moody, rounds=2)
    attempts = [attempt for one in result.history for attempt in one.attempts]
    assert {attempt.error for attempt in attempts if attempt.seed % 2} == {"moody: out of memory"}
    assert all(attempt.valid == (attempt.seed % 2 == 0) for attempt in attempts)
    assert any(attempt.valid for attempt in attempts)
    broken = run(lambda image, seed: grainy(image, seed) if image.shape == LQ.shape else image / 0, rounds=1)
    assert not broken.history[1].has_image()
    assert broken.history[1].reason.startswith("none of 4 could be made or measured")
    assert broken.stopped == "budget"
    odd_reward = MetricReward(odd, "odd", True, (0, 1))
    assert all(one.reward < 0.93 for one in run(reward=odd_reward, rounds=2).history if one.accepted)
    with pytest.raises(ValueError, match="none of 4 candidates could be measured"):
        run(reward=MetricReward(lambda image: math.nan, "blind", True, (0, 1)))


def test_what_cannot_be_refined_is_refused():
    for options in ({"rounds": 0}, {"seeds_per_round": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="seed must be at least 0, the others at least 1"):
            run(**options)
    for options in ({"min_gain": -0.1}, {"min_gain": math.nan}, {"lr_consistency_slack_db": -1}):
        with pytest.raises(ValueError, match="both must be finite and at least 0"):
            run(**options)
    with pytest.raises(ValueError, match="no finite range"):
        run(reward=nearness(score_range=(0, math.inf)), min_gain=None)
    with pytest.raises(ValueError, match="needs hr"):
        run(reward=nearness(needs=("hr",)))
    with pytest.raises(ValueError, match="pass assessor="):
        refine(grainy, LQ, nearness())
    with pytest.raises(TypeError, match="must be a ZoomIQA or a Reward"):
        refine(grainy, LQ, "nano")
    with pytest.raises(ValueError, match="needs 5 px"):
        refine(grainy, make_image(0, 4, 20), nearness(), assessor=Scripted(ASKS))


def test_the_least_gain_is_a_four_hundredth_of_the_range_and_a_zoomiqa_rates_and_looks():
    result = refine(grainy, LQ, Scripted(ASKS), rounds=1, progress=False)
    assert result.report["settings"]["min_gain"] == pytest.approx(0.01)
    assert result.reward == pytest.approx(1 + 4 * near_target(load_image(result.image)), abs=1e-4)
