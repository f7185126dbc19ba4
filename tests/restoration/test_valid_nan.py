"""A reward that says "valid" of NaN: everything that chooses or counts takes the image for unmeasured.

`Scores` corrects such a claim when it is made. A reward that writes into its tensors afterwards gets past that, so each
consumer is tried with both.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from scripted_refinement import ASKS, LQ, Scripted, grainy, near_target
from tiny import make_image

from restoration.evaluation.datasets import degraded_folder
from restoration.evaluation.evaluate import evaluate
from restoration.refinement import refine
from restoration.restorer.rng import candidate_seed
from restoration.selection.best_of_n import best_of_n
from zoomiqa_reward.images.loading import load_image, save_png
from zoomiqa_reward.model.ranking import rank
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import Reward


class Claims(Reward):
    """Closeness to the target; NaN, said to be valid, for images that are close enough: the best ones."""

    name, score_range = "claims", (0.0, 1.0)

    def __init__(self, judge, late, limit):
        self.judge, self.late, self.limit, self.told = judge, late, limit, 0

    def __call__(self, images, lq=None, hr=None, prompts=None):
        known = torch.tensor([self.judge(load_image(image)) for image in images])
        said = torch.where(known > self.limit, math.nan, known)
        self.told += int(said.isnan().sum())
        valid, std = torch.ones(len(known), dtype=torch.bool), torch.zeros(len(known))
        if not self.late:
            return Scores(value=said, valid=valid, std=std)
        scores = Scores(value=known, valid=valid, std=std)
        scores.value.copy_(said)
        assert bool((scores.valid & scores.value.isnan()).any()) == bool(said.isnan().any())
        return scores


late = pytest.mark.parametrize("late", [False, True])


def brightness(image):
    return float(image.mean())


@late
def test_rank_puts_it_last_and_in_no_gap(late):
    images = [torch.full((3, 16, 16), level) for level in (0.2, 0.9, 0.4)]
    found = rank(Claims(brightness, late, 0.8), images)
    assert found.order == (2, 0, 1)
    assert found.invalid == (1,)
    assert found.gap == pytest.approx(0.2)
    assert found.ratings.valid.tolist() == [True, False, True]


@late
def test_best_of_n_never_chooses_it(late):
    plain = best_of_n(grainy, LQ, Claims(near_target, late, 1.0), n=5, progress=False)
    top = plain.best
    reward = Claims(near_target, late, plain.best.score - 1e-5)
    result = best_of_n(grainy, LQ, reward, n=5, progress=False)
    assert reward.told == 1
    lost = result.candidates[top.index]
    assert (lost.valid, lost.rank) == (False, None)
    assert "claims" in lost.error
    assert result.best.index == plain.order[1].index
    assert any("1 of 5 could not be measured" in note for note in result.notes)
    with pytest.raises(ValueError, match="could be measured"):
        _ = best_of_n(grainy, LQ, Claims(near_target, late, 0.0), n=3, progress=False).best


@late
def test_refine_never_keeps_it(late):
    start = best_of_n(grainy, LQ, Claims(near_target, late, 1.0), n=4, progress=False).best.score
    reward = Claims(near_target, late, start + 1e-6)  # whatever is better than the start
    result = refine(grainy, LQ, reward, assessor=Scripted(ASKS), min_gain=0.0, lr_consistency_slack_db=1.0, rounds=2,
                    progress=False)  # fmt: skip
    assert reward.told > 0
    assert result.reward == pytest.approx(start)
    attempts = [attempt for one in result.history for attempt in one.attempts]
    unmeasured = [attempt for attempt in attempts if not attempt.valid]
    assert len(unmeasured) == reward.told
    assert all("claims" in attempt.error for attempt in unmeasured)
    assert all(math.isfinite(attempt.reward) for attempt in attempts if attempt.valid)


class Shaded:
    """A restorer whose seeds fix how bright the image is."""

    name, fingerprint, scale = "shaded", "0", 4

    def restore(self, image, seeds):
        large = image.repeat_interleave(4, 1).repeat_interleave(4, 2)
        for seed in seeds:
            yield SimpleNamespace(image=large * (0.5 + 0.5 * (seed % 1009) / 1009), seed=seed)


@late
def test_evaluate_counts_it_as_unmeasured(late, tmp_path):
    (tmp_path / "hr").mkdir()
    for k in range(2):
        save_png(make_image(k, 64, 72), tmp_path / "hr" / f"{k}.png")
    dataset = degraded_folder(tmp_path / "hr", "bicubic")
    seeds = [candidate_seed(0, k) for k in range(3)]
    levels = [brightness(one.image) for k in range(2) for one in Shaded().restore(dataset.load(k).lq, seeds)]
    reward = Claims(brightness, late, sorted(levels)[-2])  # above it, at least one candidate
    results = evaluate(Shaded(), dataset, ["psnr_y"], n=3, seed=0, reward=reward).report()
    assert reward.told > 0
    [(reason, count)] = results["problems"]["unmeasured"]["reward"].items()
    assert "claims" in reason
    assert count == reward.told
    assert results["problems"]["left_out"]["reward"]
