"""A generation batch, and which images it is drawn for.

A generation batch: one process's trajectories with rewards and advantages, cut into rows that can be trained on.

Progressive Re-sampling: from the natural distribution of opinion scores to a balanced one, while training goes on.

Scores pile up in the middle of the scale, and a policy that always answers the middle does well on them. The purpose
is Zoom-IQA's; the schedule is ours, its paper's could not be read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
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


SCHEDULES = ("linear", "step", "cosine")


@dataclass(frozen=True, kw_only=True)
class ResamplingConfig:
    """How likely an image of each level of MOS is, as training goes on."""

    levels: int = 5
    """Equal levels of 1..5; an image's chance is proportional to (images of its level) ** -alpha."""
    schedule: str = "linear"
    """How alpha goes from `start` to `end`: linear; cosine; step (at half time)."""
    start: float = 0.0
    """alpha at the beginning; 0: every image is equally likely."""
    end: float = 1.0
    """alpha at the end; 1: every level is equally likely. start=1, end=0 is the reverse; 0 and 0 switches it off."""

    def __post_init__(self) -> None:
        if self.levels < 1 or self.schedule not in SCHEDULES:
            raise ValueError(f"levels={self.levels} must be at least 1, schedule {self.schedule!r} of {SCHEDULES}")
        if not (0 <= self.start <= 1 and 0 <= self.end <= 1):
            raise ValueError(f"start={self.start}, end={self.end}: alpha lies in 0..1")

    def alpha(self, progress: float) -> float:
        """Return alpha at `progress` in 0..1.

        >>> [ResamplingConfig(schedule=name).alpha(0.25) for name in ("linear", "step")]
        [0.25, 0.0]
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress={progress}: must lie in 0..1")
        shares = {
            "linear": progress,
            "step": float(progress >= 0.5),
            "cosine": 0.5 * (1 - math.cos(math.pi * progress)),
        }
        return self.start + (self.end - self.start) * shares[self.schedule]


def level_of(mos: Sequence[float], levels: int) -> NDArray[np.int64]:
    """Return the level 0 .. levels - 1 of each MOS in 1..5; an edge belongs to the upper level, 5 to the last.

    >>> level_of([1.0, 1.8, 4.99, 5.0], 5).tolist()
    [0, 1, 4, 4]
    """
    # rounded: (1.8 - 1) / 0.8 is 0.9999999999999999 or 1, by how it is written
    shares = np.round((np.asarray(mos, dtype=np.float64) - 1) / 4 * levels, 9)
    return np.clip(shares.astype(np.int64), 0, levels - 1)


def image_chances(mos: Sequence[float], levels: int, alpha: float) -> NDArray[np.float64]:
    """Return each image's chance, proportional to (images of its level) ** -alpha; they sum to 1.

    >>> image_chances([1.0, 3.0, 3.0, 3.0], 5, 1.0).round(6).tolist()
    [0.5, 0.166667, 0.166667, 0.166667]
    """
    places = level_of(mos, levels)
    counts = np.bincount(places, minlength=levels).astype(np.float64)
    weights = counts[places] ** -alpha
    return weights / weights.sum()


def draw_images(
    mos: Sequence[float], count: int, config: ResamplingConfig, progress: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the places of `count` different images. Raises ValueError where there are fewer."""
    if count > len(mos):
        raise ValueError(f"{count} different images per step of a data set of {len(mos)}: lower images_per_step")
    chances = image_chances(mos, config.levels, config.alpha(progress))
    return rng.choice(len(mos), size=count, replace=False, p=chances)
