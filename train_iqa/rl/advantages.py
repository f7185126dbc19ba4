"""Advantages of trajectories, and how they come to the rows: GRPO for answers that are one or two rows each.

The group is the K trajectories of one image, not their rows: a zoomed trajectory would otherwise count twice in its
group's mean. Its advantage is then given to both of its rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

EPS = 1e-6


def group_advantages(rewards: Tensor) -> Tensor:
    """Return [images, samples] (reward - group mean) / (group standard deviation + eps), unbiased deviation.

    A group whose rewards are all equal gives exactly 0, not noise / eps. Raises ValueError for NaN and for groups of
    fewer than 2.

    >>> group_advantages(torch.tensor([[1.0, 3.0], [0.1, 0.1]])).tolist()
    [[-0.7071062922477722, 0.7071062922477722], [0.0, 0.0]]
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards of shape {tuple(rewards.shape)}: [images, samples >= 2] are needed")
    if not rewards.isfinite().all():
        raise ValueError("rewards hold NaN or infinity; an unreadable answer earns 0")
    is_equal = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)  # the mean of equal numbers may not be equal
    spread = rewards - rewards.mean(dim=1, keepdim=True)
    return torch.where(is_equal, 0.0, spread / (rewards.std(dim=1, keepdim=True) + EPS))


def scatter_to_rows(advantages: Tensor, turns: Sequence[int]) -> Tensor:
    """Return [rows]: each trajectory's advantage for each of its turns, in order.

    >>> scatter_to_rows(torch.tensor([0.5, -1.0]), [2, 1]).tolist()
    [0.5, 0.5, -1.0]
    """
    return advantages.repeat_interleave(torch.tensor(list(turns)))


def trajectory_row_weights(turns: Sequence[int]) -> Tensor:
    """Return [rows] 1 / turns of the row's trajectory: with row means, every trajectory counts once.

    >>> trajectory_row_weights([2, 1]).tolist()
    [0.5, 0.5, 1.0]
    """
    counts = torch.tensor(list(turns))
    return (1.0 / counts).repeat_interleave(counts)


def token_row_weights(tokens: Sequence[int]) -> Tensor:
    """Return [rows] the row's tokens: every token counts once, zoomed trajectories about double. An ablation.

    >>> token_row_weights([3, 5]).tolist()
    [3.0, 5.0]
    """
    return torch.tensor(list(tokens), dtype=torch.float32)
