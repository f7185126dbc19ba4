"""What is computed on whole tensors is what loops over its definition give: rank reward, KL-Coverage."""

import math

import numpy as np
import pytest
import torch

from train_iqa.rl.coverage import coverage_mask
from train_iqa.rl.rewards import rank_reward


@pytest.mark.parametrize("seed", range(4))
def test_the_rank_reward_is_its_double_loop(seed):
    """With unreadable answers, one image that has a single readable one, and two of equal opinion scores."""
    generator = torch.Generator().manual_seed(seed)
    ratings, mos = 1 + 4 * torch.rand(9, 6, generator=generator), 1 + 4 * torch.rand(9, generator=generator)
    ratings[2, 3] = math.nan
    ratings[5] = math.nan
    ratings[5, 0] = 2.0
    mos[1] = mos[0]
    readable = [[float(one) for one in row if not math.isnan(one)] for row in ratings]
    mean = [np.mean(row) for row in readable]
    variance = [np.var(row, ddof=1) if len(row) > 1 else 0.0 for row in readable]
    wanted = torch.zeros(9, 6)
    for i in range(9):
        for k in range(6):
            rating = float(ratings[i, k])
            if math.isnan(rating):
                continue
            found = []
            for j in range(9):
                if j != i and len(readable[j]) > 1:
                    z = (rating - mean[j]) / math.sqrt(variance[i] + variance[j] + 1e-6)
                    p = 0.5 * (1 + math.erf(z / math.sqrt(2)))
                    g = 1.0 if mos[i] > mos[j] else 0.5 if mos[i] == mos[j] else 0.0
                    found.append(math.sqrt(p * g + 1e-6) + math.sqrt((1 - p) * (1 - g) + 1e-6))
            wanted[i, k] = np.mean(found)
    assert torch.allclose(rank_reward(ratings, mos), wanted, atol=1e-5)


@pytest.mark.parametrize("share", [2e-3, 0.05])
def test_the_coverage_mask_is_the_likely_and_good_tokens_of_largest_covariance(share):
    generator = torch.Generator().manual_seed(0)
    logprobs = -(torch.rand(5000, generator=generator) ** 3) * 8
    advantages = torch.randn(5000, generator=generator)
    covariance = ((logprobs - logprobs.mean()) * (advantages - advantages.mean())).tolist()
    candidates = [k for k in range(5000) if logprobs[k] > logprobs.mean() and advantages[k] > advantages.mean()]
    count = min(len(candidates), max(1, math.floor(share * 5000)))
    wanted = sorted(candidates, key=lambda k: -covariance[k])[:count]
    assert coverage_mask(logprobs, advantages, share=share).nonzero()[:, 0].tolist() == sorted(wanted)
