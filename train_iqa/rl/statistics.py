"""What a step's trajectories say: how good, how varied. Collapse must be visible, so the spread is always measured."""

import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from train_iqa.rl.rollout import Trajectory
from zoomiqa_reward.ratings import Assessment


def rationale(assessment: Assessment) -> tuple[str, ...]:
    """Return the reasoning of an assessment without its numbers' answer: the sections, or else the raw texts."""
    sections = tuple(text for turn in assessment.turns for text in turn.sections.values())
    return sections or tuple(turn.text for turn in assessment.turns)


def trajectory_statistics(groups: Sequence[Sequence[Trajectory]]) -> dict[str, float]:
    """Return shares and means over the trajectories of groups (one group an image).

    rating_std: mean over groups with at least 2 readable ratings of their unbiased standard deviation (NaN if there
    is none). distinct_rationales: mean over groups of different rationales / trajectories; 1 / K is collapse.
    """
    flat = [one for group in groups for one in group]
    turns = [turn for one in flat for turn in one.turns]
    deviations, distinct = [], []
    for group in groups:
        readable = torch.tensor([one.assessment.rating for one in group if one.assessment.valid], dtype=torch.float64)
        if len(readable) >= 2:
            deviations.append(float(readable.std()))
        distinct.append(len({rationale(one.assessment) for one in group}) / len(group))
    return {
        "rating_std": _mean(deviations),
        "distinct_rationales": _mean(distinct),
        "zooms": _mean([float(len(one.turns) == 2) for one in flat]),
        "unreadable": _mean([float(not one.assessment.valid) for one in flat]),
        "truncated": _mean([float(turn.is_truncated) for turn in turns]),
        "answer_tokens": _mean([float(turn.row.completion_ids.shape[0]) for turn in turns]),
    }


def token_mean(values: Sequence[Tensor]) -> float:
    """Return the mean over all tokens of rows; NaN without any."""
    return float(torch.cat(list(values)).double().mean()) if values else math.nan


def mean_over_processes(accelerator: Accelerator, values: dict[str, float]) -> dict[str, float]:
    """Return each value's mean over the processes that could measure it; NaN where none could."""
    gathered = gather_object([values])
    return {name: _mean([one[name] for one in gathered if not math.isnan(one[name])]) for name in values}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
