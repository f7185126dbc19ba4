"""What a step's trajectories say: how good, how varied. Collapse must be visible, so the spread is always measured.

Means are over the values of all processes together, never means of the processes' means: how many values each has
differs, and the number of processes must not change what is logged.
"""

import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from train_iqa.rl.rollout import AnswerTrajectory
from zoomiqa_reward.model.ratings import Assessment


def rationale(assessment: Assessment) -> tuple[str, ...]:
    """Return the reasoning of an assessment without its numbers' answer: the sections, or else the raw texts."""
    sections = tuple(text for turn in assessment.turns for text in turn.sections.values())
    return sections or tuple(turn.text for turn in assessment.turns)


def trajectory_statistics(groups: Sequence[Sequence[AnswerTrajectory]]) -> dict[str, list[float]]:
    """Return values whose means describe the trajectories of groups (one group an image).

    rating_std: of each group with at least 2 readable ratings, their unbiased standard deviation. distinct_rationales:
    of each group, different rationales / trajectories; 1 / K is collapse. zooms, unreadable: of each trajectory, 0 or
    1. truncated (0 or 1), answer_tokens: of each turn.
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
        "rating_std": deviations,
        "distinct_rationales": distinct,
        "zooms": [float(len(one.turns) == 2) for one in flat],
        "unreadable": [float(not one.assessment.valid) for one in flat],
        "truncated": [float(turn.is_truncated) for turn in turns],
        "answer_tokens": [float(turn.row.completion_ids.shape[0]) for turn in turns],
    }


def token_values(rows: Sequence[Tensor]) -> list[float]:
    """Return the values of all tokens of rows."""
    return torch.cat(list(rows)).tolist() if rows else []


def mean_over_processes(accelerator: Accelerator, values: dict[str, list[float]]) -> dict[str, float]:
    """Return the mean of each name's values on all processes, which all call this; NaN where there is no value."""
    gathered = gather_object([values])
    found = {name: [value for one in gathered for value in one[name]] for name in values}
    return {name: math.fsum(every) / len(every) if every else math.nan for name, every in found.items()}
