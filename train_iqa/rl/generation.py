"""A generation batch: one process's trajectories with rewards and advantages, cut into rows that can be trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from train_iqa.data import LabelledImage
from train_iqa.rl.objective import group_advantages, scatter_to_rows, token_row_weights, trajectory_row_weights
from train_iqa.rl.page import PageGroup
from train_iqa.rl.rollout import AnswerTrajectory
from train_iqa.rows.completions import TrainingRow


@dataclass(kw_only=True)
class Generation:
    """One process's part of a generation batch; the lists after `sampled` are filled in before the update."""

    images: Sequence[LabelledImage]
    pixels: Sequence[Tensor]
    """Float32 CHW in [0, 1], one for each image."""
    groups: Sequence[Sequence[AnswerTrajectory]]
    """One group for each image."""
    rewards: dict[str, Tensor]
    """Name -> [images, samples]."""
    advantages: Tensor
    """[images, samples]"""
    rows: list[TrainingRow]
    """One for each turn, trajectory by trajectory."""
    row_advantages: Tensor
    """[rows]"""
    row_weights: Tensor
    """[rows]"""
    sampled: list[Tensor]
    """Log-probabilities of each row's tokens, as the sampler saw them."""
    old: list[Tensor] = field(default_factory=list)
    """As the trainer sees them before the first update."""
    reference: list[Tensor] = field(default_factory=list)
    """Of the initial policy; zeros in rows where it was not asked."""
    held: list[Tensor] = field(default_factory=list)
    """bool: tokens that the KL acts on."""
    dropped: list[Tensor] = field(default_factory=list)
    """bool: tokens without policy gradient (Clip-Cov)."""


def make_generation(
    images: Sequence[LabelledImage],
    pixels: Sequence[Tensor],
    groups: Sequence[Sequence[AnswerTrajectory]],
    rewards: dict[str, Tensor],
    *,
    count_tokens: bool,
) -> Generation:
    """Return the batch; advantages come from `rewards["total"]` and go to all rows of their trajectory.

    count_tokens: rows weigh as many as their tokens instead of 1 / turns.
    """
    advantages = group_advantages(rewards["total"])
    trajectories = [trajectory for group in groups for trajectory in group]
    turns = [len(trajectory.turns) for trajectory in trajectories]
    sampled = [turn for trajectory in trajectories for turn in trajectory.turns]
    weights = trajectory_row_weights(turns)
    if count_tokens:
        weights = token_row_weights([turn.row.completion_ids.shape[0] for turn in sampled])
    return Generation(
        images=images, pixels=pixels, groups=groups, rewards=rewards, advantages=advantages,
        rows=[turn.row for turn in sampled], row_advantages=scatter_to_rows(advantages.flatten(), turns),
        row_weights=weights, sampled=[turn.logprobs for turn in sampled],
    )  # fmt: skip


def page_groups(made: Generation, limit: int) -> list[PageGroup]:
    """Return the first `limit` images with their trajectories, rewards and advantages, for a page."""
    groups = []
    for i, group in enumerate(made.groups[:limit]):
        columns = {**made.rewards, "advantage": made.advantages}
        rewards = [{name: float(values[i, k]) for name, values in columns.items()} for k in range(len(group))]
        image = made.images[i]
        groups.append(
            PageGroup(name=image.id, image=made.pixels[i], mos=image.mos, trajectories=group, rewards=rewards)
        )
    return groups
