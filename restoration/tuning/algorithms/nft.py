"""DiffusionNFT: learning on the forward process. It needs only the final image and its reward, from any sampler.

A second adapter, `old`, draws the candidates and slowly follows the trained one. The trained prediction v defines two
implicit policies, v+ = (1 - beta) v_old + beta v and v- = (1 + beta) v_old - beta v. Good candidates pull v+ to
themselves, bad ones v-, in the share r of the reward.
Source: Zheng et al. 2025 (DiffusionNFT), and its code for the normalisation and the weights of the losses. No guidance.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from restoration.tuning.algorithms.groups import group_advantages, require_groups
from restoration.tuning.config import require_numbers
from restoration.tuning.context import Collected, LossTerm, Part, Tuning
from restoration.tuning.data import pick_crops
from restoration.tuning.lora import OLD, POLICY, copy_adapter, reference, use_adapter
from restoration.tuning.sampler.denoising import expected_target, random_noise
from restoration.tuning.sampler.parametrisation import noisy, to_x0
from restoration.tuning.sampler.rollout import Piece, draw_candidates, score, score_report

MIN_ERROR = 1e-5
"""Least mean absolute error that a loss is divided by: a candidate that is met exactly would give 0 / 0."""


def nft_share(advantage: Tensor, clip: float) -> Tensor:
    """Return r in [0, 1]: how much a candidate counts as good.

    >>> nft_share(torch.tensor([-9.0, 0.0, 2.5]), 5.0)
    tensor([0.0000, 0.5000, 0.7500])
    """
    return (advantage / clip / 2 + 0.5).clamp(0, 1)


def implicit_policies(output: Tensor, old_output: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return the positive and the negative policy's outputs."""
    return (1 - beta) * old_output + beta * output, (1 + beta) * old_output - beta * output


def scaled_error(x0_predicted: Tensor, x0: Tensor) -> Tensor:
    """Return [rows] mean squared error over its own mean absolute error, a constant: all noise levels weigh alike."""
    difference = x0_predicted - x0
    scale = difference.detach().abs().flatten(1).mean(dim=1).clamp_min(MIN_ERROR)
    return difference.square().flatten(1).mean(dim=1) / scale


def nft_loss(share: Tensor, positive_error: Tensor, negative_error: Tensor, beta: float, clip: float = 1.0) -> Tensor:
    """Return [rows] clip (r L+ + (1 - r) L-) / beta; the advantages' clip stands there in the method's code."""
    return clip * (share * positive_error + (1 - share) * negative_error) / beta


def old_decay(updates: int) -> float:
    """Return how much `old` keeps of itself after a round: 0 at first, 0.001 more per update, at most 0.5."""
    return min(0.001 * updates, 0.5)


@dataclass(frozen=True, kw_only=True)
class NFT:
    """Settings."""

    name: ClassVar[str] = "nft"
    adapters: ClassVar[tuple[str, ...]] = (POLICY, OLD)
    beta: float = 1.0
    """1: v+ is the trained prediction itself."""
    advantage_clip: float = 5.0
    """Of the advantages, and the factor of the loss beside the KL."""
    kl: float = 1e-4
    """Weight of mean (v - v_ref)^2."""

    def __post_init__(self) -> None:
        require_numbers(self)
        if self.beta <= 0 or self.advantage_clip <= 0 or self.kl < 0:
            raise ValueError(f"{self}: beta and advantage_clip must be above 0, kl at least 0")

    def prepare(self, tuning: Tuning) -> None:
        """Raise ValueError for a single candidate."""
        require_groups(tuning.config, self.name)

    def collect(self, tuning: Tuning, number: int) -> Collected:
        """Draw a round with `old` and score it."""
        examples = pick_crops(tuning.examples, tuning.images_here, tuning.config.crop_px, (tuning.seed(1, number),))
        seeds = [tuning.seed(2, number, index) for index in range(len(examples))]
        with use_adapter(tuning.denoiser.module, OLD):
            drawn = draw_candidates(tuning, examples, seeds, vary_sharpness=tuning.config.vary_sharpness,
                                    expected=tuning.config.expected_targets)  # fmt: skip
        scores = score(tuning, drawn)
        advantages = group_advantages(scores, drawn.keys, clip=self.advantage_clip,
                                      max_failure_rate=tuning.config.max_failure_rate,
                                      score_range=tuning.reward.score_range)  # fmt: skip
        parts = []
        for piece in drawn.pieces:
            kept = [row for row, index in enumerate(piece.places()) if bool(advantages.kept[index])]
            if kept:
                share = nft_share(advantages.value[piece.places()][kept], self.advantage_clip).to(tuning.device)
                loss = partial(self._loss, tuning, piece, kept, share)
                parts.append(Part(loss=loss, example=drawn.owners[piece.first]))
        return Collected(parts=parts, report=score_report(scores, drawn.keys) | advantages.report())

    def after_round(self, tuning: Tuning, updates: int) -> None:
        """`old` follows the trained adapter."""
        copy_adapter(tuning.denoiser.module, POLICY, OLD, keep=old_decay(updates))

    def _loss(
        self, tuning: Tuning, piece: Piece, kept: list[int], share: Tensor, generator: torch.Generator
    ) -> LossTerm:
        denoiser, condition = tuning.denoiser, piece.condition.rows(kept)
        x0, kind = piece.trajectory.x0[kept], denoiser.schedule.kind
        varied = None if piece.varied is None else piece.varied.rows(kept)
        x0 = x0 if varied is None else varied.x0_as_is
        times, alphas, sigmas = denoiser.schedule.draw(len(kept), generator)
        noise = random_noise(x0, generator, tuning.config.temperature)
        x_t = noisy(x0, noise, alphas, sigmas)
        with torch.no_grad():
            with use_adapter(denoiser.module, OLD):
                old = denoiser.predict(x_t, times, condition)
                if varied is not None:
                    wanted = expected_target(denoiser, varied, noise, (times, alphas, sigmas))
                    x0 = to_x0(kind, wanted, x_t, alphas, sigmas)
            with reference(denoiser.module):
                base = denoiser.predict(x_t, times, condition)
        now = denoiser.predict(x_t, times, condition)
        errors = [
            scaled_error(to_x0(kind, output, x_t, alphas, sigmas), x0)
            for output in implicit_policies(now, old, self.beta)
        ]
        kl = (now - base).square().flatten(1).mean(dim=1)
        loss = nft_loss(share, errors[0], errors[1], self.beta, self.advantage_clip) + self.kl * kl
        return LossTerm(loss.mean(), len(kept), {"kl": float(kl.detach().mean())})
