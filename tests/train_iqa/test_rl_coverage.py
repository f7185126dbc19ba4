"""KL-Coverage, the losses of tokens and Clip-Cov against numbers worked out by hand."""

import math

import pytest
import torch

from train_iqa.rl.coverage import KlConfig, clip_cov_mask, covariance, coverage_mask, quadrant_counts
from train_iqa.rl.objective import clipped_loss, k3, mismatch_weight, old_policy_penalty

LOGPROBS = torch.tensor([-0.2, -0.4, -1.1, -0.1, -3.2])
ADVANTAGES = torch.tensor([1.0, 0.5, 2.0, -1.0, -2.0])
"""Means -1.0 and 0.1. Centred: 0.8, 0.6, -0.1, 0.9, -2.2 and 0.9, 0.4, 1.9, -1.1, -2.1.
Products: 0.72, 0.24, -0.19, -0.99, 4.62. Above both means: tokens 0 and 1."""


def chosen(**options):
    return coverage_mask(LOGPROBS, ADVANTAGES, **options).nonzero()[:, 0].tolist()


def test_covariance_by_hand():
    assert covariance(LOGPROBS, ADVANTAGES).tolist() == pytest.approx([0.72, 0.24, -0.19, -0.99, 4.62], abs=1e-6)


@pytest.mark.parametrize(
    ("share", "tokens"),
    [(0.2, [0]), (0.4, [0, 1]), (0.6, [0, 1]), (1e-3, [0])],  # 1, 2, 3 of which only 2 are there, at least 1
)
def test_the_mask_by_hand(share, tokens):
    assert chosen(share=share) == tokens


def test_all_quadrants_pick_the_opposite_corner():
    assert chosen(share=0.2, quadrant="all") == [4]  # unlikely and bad: the largest product of all
    assert chosen(share=0.4, quadrant="all") == [0, 4]


def test_where_the_chosen_tokens_lie():
    everything = torch.ones(5, dtype=torch.bool)
    counts = {"likely_good": 2, "likely_bad": 1, "unlikely_good": 1, "unlikely_bad": 1}
    assert quadrant_counts(LOGPROBS, ADVANTAGES, everything) == counts
    counts = {"likely_good": 0, "likely_bad": 0, "unlikely_good": 0, "unlikely_bad": 1}
    mask = coverage_mask(LOGPROBS, ADVANTAGES, share=0.2, quadrant="all")
    assert quadrant_counts(LOGPROBS, ADVANTAGES, mask) == counts


@pytest.mark.parametrize("advantages", [torch.zeros(5), torch.full((5,), 0.1), -LOGPROBS])
def test_without_candidates_nothing_is_held(advantages):
    assert not coverage_mask(LOGPROBS, advantages, share=0.5).any()


def test_size_over_a_batch_of_the_usual_size():
    """2e-3 of 4000 tokens are 8; the mask does not depend on how the batch was ordered."""
    generator = torch.Generator().manual_seed(0)
    logprobs, advantages = -torch.rand(4000, generator=generator), torch.randn(4000, generator=generator)
    mask = coverage_mask(logprobs, advantages, share=2e-3)
    assert int(mask.sum()) == 8
    assert quadrant_counts(logprobs, advantages, mask)["likely_good"] == 8
    order = torch.randperm(4000, generator=generator)
    assert torch.equal(coverage_mask(logprobs[order], advantages[order], share=2e-3), mask[order])


def test_on_skewed_log_probabilities_plain_selection_takes_the_bad_corner():
    """Log-probabilities of sampled tokens are skewed to the left; half of the trajectories are good."""
    generator = torch.Generator().manual_seed(1)
    logprobs = -torch.empty(20_000).exponential_(4.0, generator=generator)
    advantages = torch.sign(torch.randn(20_000, generator=generator))
    mask = coverage_mask(logprobs, advantages, share=2e-3, quadrant="all")
    counts = quadrant_counts(logprobs, advantages, mask)
    assert counts["unlikely_bad"] == 40
    mask = coverage_mask(logprobs, advantages, share=2e-3)
    assert quadrant_counts(logprobs, advantages, mask)["likely_good"] == 40


def test_masks_carry_no_gradient_and_refuse_other_shapes():
    assert not covariance(LOGPROBS.clone().requires_grad_(), ADVANTAGES).requires_grad
    with pytest.raises(ValueError, match="two equal lists"):
        coverage_mask(LOGPROBS, ADVANTAGES[:3], share=0.5)


def test_clip_cov_takes_few_tokens_of_large_covariance():
    """Products are +-2 on 6000 tokens, 0.25 on the rest: 2e-4 of 10000 are 2."""
    logprobs = torch.tensor([-2.0, 2.0] * 3000 + [-0.5, 0.5] * 2000)
    advantages = torch.tensor([-1.0, 1.0] * 3000 + [-0.5, 0.5] * 2000)
    masks = [clip_cov_mask(logprobs, advantages, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert int(masks[0].sum()) == 2
    assert (covariance(logprobs, advantages)[masks[0]] == 2.0).all()
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert not clip_cov_mask(logprobs / 10, advantages, torch.Generator()).any()
    assert not clip_cov_mask(logprobs * 3, advantages, torch.Generator()).any()  # 6: beyond the range, and 0.75 below


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [(1.5, 1.0, -1.2), (1.5, -1.0, 1.5), (0.5, 1.0, -0.5), (0.5, -1.0, 0.8), (1.1, 2.0, -2.2)],
)
def test_clipped_loss_by_hand(ratio, advantage, loss):
    """-min(r A, clip(r, 0.8, 1.2) A): at 0.5 and -1 the clipped -0.8 is the smaller, so 0.8."""
    found = clipped_loss(torch.tensor([math.log(ratio)]), torch.zeros(1), torch.tensor([advantage]), 0.2)
    assert float(found) == pytest.approx(loss, abs=1e-6)


def test_k3_by_hand():
    """d = ref - cur = 0.5: e^0.5 - 0.5 - 1 = 0.148721; d = -1: e^-1 + 1 - 1 = 0.367879; gradient by cur: 1 - e^d."""
    cur = torch.tensor([-1.5, -1.0, -2.0], requires_grad=True)
    found = k3(cur, torch.tensor([-1.0, -2.0, -2.0]))
    assert found.tolist() == pytest.approx([0.148721, 0.367879, 0.0], abs=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), cur)
    assert gradient.tolist() == pytest.approx([1 - math.exp(0.5), 1 - math.exp(-1), 0.0], abs=1e-6)


def test_the_old_policy_penalty_has_no_gradient_on_policy():
    cur = torch.tensor([-1.0, -2.0], requires_grad=True)
    found = old_policy_penalty(cur, torch.tensor([-1.0, -1.5]))
    assert found.tolist() == [0.0, 0.5]
    assert torch.autograd.grad(found.sum(), cur)[0].tolist() == [0.0, -1.0]


def test_mismatch_weights_are_capped_from_above_only():
    found = mismatch_weight(torch.tensor([0.0, -1.0, 5.0]), torch.zeros(3), 2.0)
    assert found.tolist() == pytest.approx([1.0, math.exp(-1), 2.0])


@pytest.mark.parametrize("options", [{"kind": "some"}, {"quadrant": "low"}, {"share": 0.0}, {"beta": -1.0}])
def test_wrong_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        KlConfig(**options)


def test_a_share_of_the_tokens_is_rounded_down_to_one_at_least():
    logprobs, advantages = -torch.arange(10.0), torch.arange(10.0)
    counts = [int(coverage_mask(logprobs, advantages, share=share, quadrant="all").sum()) for share in (0.01, 0.29, 1)]
    assert counts == [1, 2, 10]


def test_a_token_at_a_mean_is_neither_likely_nor_good():
    logprobs, advantages = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([2.0, 3.0, -5.0])
    assert coverage_mask(logprobs, advantages, share=1.0).tolist() == [True, False, False]
    assert coverage_mask(logprobs[[1, 0, 2]], torch.tensor([1.0, 0.0, -1.0]), share=1.0).tolist() == [False] * 3
