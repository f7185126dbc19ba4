"""The loss of one token, and of rows: the clipped policy loss, the KL on its tokens, the weights that sum them."""

import torch
from torch import Tensor


def clipped_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Return -min(r A, clip(r, 1 - clip, 1 + clip) A) with r = exp(logp - old), for each token.

    Source: PPO (Schulman et al. 2017), as GRPO uses it.

    >>> clipped_loss(torch.tensor([0.5]), torch.tensor([0.0]), torch.tensor([2.0]), 0.2).tolist()
    [-2.4000000953674316]
    """
    ratio = torch.exp(logprobs - old)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Return exp(ref - logp) - (ref - logp) - 1, for each token: an estimate of KL(policy || reference), at least 0.

    Source: Schulman, "Approximating KL divergence" (2020).

    >>> k3(torch.tensor([-1.0]), torch.tensor([-1.0])).tolist()
    [0.0]
    """
    difference = reference - logprobs
    return torch.exp(difference) - difference - 1


def old_policy_penalty(logprobs: Tensor, old: Tensor) -> Tensor:
    """Return |logp - old|, for each token: the penalty of the KL-Cov code; its gradient is 0 where both are equal."""
    return (logprobs - old).abs()


def mismatch_weight(old: Tensor, sampled: Tensor, cap: float) -> Tensor:
    """Return min(exp(old - sampled), cap), detached: what the trainer's policy thinks of the sampler's tokens.

    1 where the trainer's own model sampled; another engine's log-probabilities differ, and this corrects for it.

    >>> mismatch_weight(torch.tensor([0.0, 3.0]), torch.tensor([0.0, 0.0]), 2.0).tolist()
    [1.0, 2.0]
    """
    return torch.exp(old - sampled).clamp(max=cap).detach()


def rows_loss(token_losses: Tensor, mask: Tensor, row_weights: Tensor) -> Tensor:
    """Return the sum over rows of weight x the row's mean over its tokens, to be divided by the step's total weight.

    token_losses [rows, tokens], mask bool [rows, tokens], row_weights [rows].
    """
    means = (token_losses * mask).sum(dim=1) / mask.sum(dim=1)
    return (row_weights * means).sum()
