"""A reward to compare with: the sharper the better. It is what a reward must not be, and what naive ones are."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zoomiqa_reward.images.filters import luma
from zoomiqa_reward.rewards.metric import MetricReward

_LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
MOST = 16.0
"""The Laplacian lies within -4..4, so its variance cannot exceed the square of 4."""


def laplacian_variance(image: Tensor) -> Tensor:
    """Return the variance of the 4-neighbour Laplacian of the luma of a CHW image in [0, 1]: 0 flat, more is sharper.

    A 0-dimensional tensor with a graph to the image. Source: Pech-Pacheco et al. 2000 (focus measure).

    >>> float(laplacian_variance(torch.full((3, 8, 8), 0.5)))
    0.0
    """
    kernel = torch.tensor(_LAPLACIAN, dtype=image.dtype, device=image.device)[None, None]
    return F.conv2d(luma(image)[None], kernel).var(correction=0)


def laplacian() -> MetricReward:
    """Return it as a differentiable reward: `zoomiqa check --reward zoomiqa_reward.check.baselines:laplacian`."""
    return MetricReward(laplacian_variance, "laplacian", True, (0, MOST), differentiable=True)
