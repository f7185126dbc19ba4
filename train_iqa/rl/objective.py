"""The objective of RL: advantages, losses, the reference policy, and the statistics of a step.

Advantages are GRPO's, for answers of one or two rows each. The group is the K trajectories of one image, not their
rows, because a zoomed trajectory would count twice in the mean of its group. Both of its rows get its advantage.

The losses: the clipped policy loss of a token, the KL on its tokens, and the weights that sum them over rows.

The reference is the policy before RL: with LoRA the same model with its adapter off, with full tuning one frozen copy.
`load_checkpoint` merges the SFT adapter into the weights before RL. So the model with its adapter off **is** the SFT
policy, and no second copy of the base is needed.

The statistics show how good and how varied the trajectories are; the spread is always measured, so that a collapse is
visible. Means are over the values of all processes together, never means of the means of processes: these hold
different numbers of values, and the number of processes must not change the log.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from train_iqa.rl.rollout import AnswerTrajectory
from zoomiqa_reward.model.ratings import Assessment

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


class AdapterOff:
    """The reference of a LoRA run."""

    def __init__(self, accelerator: Accelerator, model: nn.Module) -> None:
        self.accelerator, self.model = accelerator, model

    @contextmanager
    def active(self) -> Iterator[Any]:
        """Yield the model to call; inside, its adapter is off."""
        with torch.no_grad(), self.accelerator.unwrap_model(self.model).disable_adapter():
            yield self.model


class FrozenCopy:
    """The reference of a full run: a copy taken before anything is trained or wrapped."""

    def __init__(self, accelerator: Accelerator, model: nn.Module, dtype: torch.dtype, *, offload: bool) -> None:
        """Copy the model with weights of this type; the model itself may still wait on the CPU to be sharded."""
        self.accelerator, self.offload = accelerator, offload
        self.copy = copy.deepcopy(model).eval().requires_grad_(False)
        for parameter in self.copy.parameters():  # buffers stay float32: the rotary frequencies among them need it
            parameter.data = parameter.data.to(dtype)
        self.copy.to("cpu" if offload else accelerator.device)

    @contextmanager
    def active(self) -> Iterator[Any]:
        """Yield the copy, on the device of the run and in its mixed precision; offloaded, it leaves again afterwards.

        The copy is never prepared, so accelerate puts no autocast around its passes, as it does around the policy's.
        """
        with torch.no_grad(), self.accelerator.autocast():
            self.copy.to(self.accelerator.device)
            try:
                yield self.copy
            finally:
                if self.offload:
                    self.copy.to("cpu")


def rationale(assessment: Assessment) -> tuple[str, ...]:
    """Return the reasoning of an assessment without its numbers' answer: the sections, or else the raw texts."""
    sections = tuple(text for turn in assessment.turns for text in turn.sections.values())
    return sections or tuple(turn.text for turn in assessment.turns)


def trajectory_statistics(groups: Sequence[Sequence[AnswerTrajectory]]) -> dict[str, list[float]]:
    """Return values whose means describe the trajectories of groups (one group per image).

    rating_std: of each group with at least 2 readable ratings, their unbiased standard deviation. distinct_rationales:
    of each group, different rationales / trajectories; 1 / K is collapse. zooms, unreadable: of each trajectory, 0 or
    1. truncated (0 or 1), answer_tokens: of each turn.
    """
    flat = [item for group in groups for item in group]
    turns = [turn for item in flat for turn in item.turns]
    deviations, distinct = [], []
    for group in groups:
        readable = torch.tensor(
            [item.assessment.rating for item in group if item.assessment.valid], dtype=torch.float64
        )
        if len(readable) >= 2:
            deviations.append(float(readable.std()))
        distinct.append(len({rationale(item.assessment) for item in group}) / len(group))
    return {
        "rating_std": deviations,
        "distinct_rationales": distinct,
        "zooms": [float(len(item.turns) == 2) for item in flat],
        "unreadable": [float(not item.assessment.valid) for item in flat],
        "truncated": [float(turn.is_truncated) for turn in turns],
        "answer_tokens": [float(turn.row.completion_ids.shape[0]) for turn in turns],
    }


def token_values(rows: Sequence[Tensor]) -> list[float]:
    """Return the values of all tokens of rows."""
    return torch.cat(list(rows)).tolist() if rows else []


def mean_over_processes(values: dict[str, list[float]]) -> dict[str, float]:
    """Return the mean of each name's values on all processes, which all call this; NaN where there is no value."""
    gathered = gather_object([values])
    results = {name: [value for item in gathered for value in item[name]] for name in values}
    return {name: math.fsum(every) / len(every) if every else math.nan for name, every in results.items()}
