"""GRPO / DDPO: a clipped policy gradient on the sampler's own random steps, with group advantages.

Sources: Black et al. 2023 (DDPO: the denoising chain as decisions, clip 1e-4 on mean log-probabilities),
Liu et al. 2025 (Flow-GRPO: group advantages, KL of Gaussian steps), MixGRPO (a few random steps are enough).
Deviation: every step of a candidate is drawn as at inference, and only the loss is restricted to `loss_steps` of them,
so that what is scored is what the tuned model will make.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from restoration.tuning.algorithms.groups import group_advantages, require_groups
from restoration.tuning.config import require_numbers
from restoration.tuning.context import Collected, LossTerm, Part, Tuning
from restoration.tuning.data import pick_crops
from restoration.tuning.lora import POLICY, reference
from restoration.tuning.sampler.rollout import Piece, draw_candidates, refuse_varied, score, score_report
from restoration.tuning.sampler.transitions import random_steps, rescore


def grpo_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, *, clip: float) -> Tensor:
    """Return [rows] -min(r A, clamp(r, 1 - clip, 1 + clip) A) with r = exp(log_prob - old_log_prob).

    >>> grpo_loss(torch.tensor([0.0]), torch.tensor([0.0]), torch.tensor([2.0]), clip=0.2)
    tensor([-2.])
    """
    ratio = torch.exp(log_prob - old_log_prob)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def step_kl(mean: Tensor, reference_mean: Tensor, std: float) -> Tensor:
    """Return [rows] the KL divergence of two Gaussian steps of equal spread, mean over a row's elements (nats)."""
    return (mean - reference_mean).square().flatten(1).mean(dim=1) / (2 * std**2)


@dataclass(frozen=True, kw_only=True)
class GRPO:
    """Settings."""

    name: ClassVar[str] = "grpo"
    adapters: ClassVar[tuple[str, ...]] = (POLICY,)
    clip: float = 1e-4
    """Of the ratio of mean log-probabilities; a mean over elements moves little."""
    advantage_clip: float = 5.0
    kl: float = 0.02
    """Weight of the divergence from the base model; 0.01 to 0.04 are usual."""
    loss_steps: int | None = 3
    """Random steps that enter the loss, drawn anew each round; None: all."""

    def __post_init__(self) -> None:
        require_numbers(self)
        if self.clip <= 0 or self.advantage_clip <= 0 or self.kl < 0:
            raise ValueError(f"{self}: clip and advantage_clip must be above 0, kl at least 0")
        if self.loss_steps is not None and self.loss_steps < 1:
            raise ValueError(f"loss_steps={self.loss_steps}: must be at least 1, or None for all random steps")

    def prepare(self, tuning: Tuning) -> None:
        """Raise ValueError for varied candidates, for a single one, and where no step is random: there is no policy."""
        require_groups(tuning.config, self.name)
        refuse_varied(tuning.config, self.name)
        if not random_steps(tuning.path, tuning.config.eta):
            raise ValueError(
                f"grpo with eta={tuning.config.eta}: no step is random; take eta above 0, and 2 steps or more"
            )

    def collect(self, tuning: Tuning, number: int) -> Collected:
        """Draw and score a round."""
        examples = pick_crops(tuning.examples, tuning.images_here, tuning.config.crop_px, (tuning.seed(1, number),))
        seeds = [tuning.seed(2, number, index) for index in range(len(examples))]
        drawn = draw_candidates(tuning, examples, seeds, keep=True)
        scores = score(tuning, drawn)
        advantages = group_advantages(scores, drawn.keys, clip=self.advantage_clip,
                                      max_failure_rate=tuning.config.max_failure_rate,
                                      score_range=tuning.reward.score_range)  # fmt: skip
        rng = np.random.default_rng(tuning.seed(3, number))
        usable = random_steps(tuning.path, tuning.config.eta)
        count = min(len(usable), self.loss_steps or len(usable))
        steps = sorted(int(k) for k in rng.choice(usable, size=count, replace=False))
        parts = []
        for piece in drawn.pieces:
            kept = [row for row, index in enumerate(piece.places()) if bool(advantages.kept[index])]
            value = advantages.value[piece.places()].to(tuning.device)
            if kept:
                example = drawn.owners[piece.first]
                parts += [Part(loss=partial(self._loss, tuning, piece, value, kept, step), example=example)
                          for step in steps]  # fmt: skip
        return Collected(parts=parts, report=score_report(scores, drawn.keys) | advantages.report())

    def after_round(self, tuning: Tuning, updates: int) -> None:
        """The policy that draws is the one that is trained."""

    def _loss(
        self, tuning: Tuning, piece: Piece, advantage: Tensor, kept: list[int], step: int, generator: torch.Generator
    ) -> LossTerm:
        # All rows of the piece run, also those dropped: another batch could change the last bits, and the ratio.
        eta, trajectory = tuning.config.eta, piece.trajectory
        now = rescore(tuning.denoiser, piece.condition, tuning.path, trajectory, step, eta=eta)
        old = trajectory.log_probs[step]
        loss = grpo_loss(now.log_prob[kept], old[kept], advantage[kept], clip=self.clip)
        ratio = torch.exp(now.log_prob.detach() - old)[kept]
        moved = (ratio - 1).abs()
        report = {"ratio_error": float(moved.max()), "clipped": float((moved > self.clip).float().mean())}
        if self.kl > 0:
            with torch.no_grad(), reference(tuning.denoiser.module):
                base = rescore(tuning.denoiser, piece.condition, tuning.path, trajectory, step, eta=eta)
            kl = step_kl(now.mean, base.mean, now.std)[kept]
            loss = loss + self.kl * kl
            report["kl"] = float(kl.detach().mean())
        return LossTerm(loss.mean(), len(kept), report)
