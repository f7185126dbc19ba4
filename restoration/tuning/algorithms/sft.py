"""Rejection-sampling fine-tuning: denoise the best candidates of each image. The baseline for all other algorithms."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from restoration.tuning.algorithms.groups import group_advantages
from restoration.tuning.config import require_numbers
from restoration.tuning.context import Collected, LossTerm, Part, Tuning
from restoration.tuning.data import pick_crops
from restoration.tuning.lora import POLICY, reference
from restoration.tuning.sampler.denoising import denoising_errors, expected_target, random_noise
from restoration.tuning.sampler.rollout import Piece, draw_candidates, score, score_report


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Settings."""

    name: ClassVar[str] = "sft"
    adapters: ClassVar[tuple[str, ...]] = (POLICY,)
    top: int = 1
    """Number of best candidates per image to learn from."""

    def __post_init__(self) -> None:
        require_numbers(self)
        if self.top < 1:
            raise ValueError(f"top={self.top}: must be at least 1")

    def prepare(self, tuning: Tuning) -> None:
        """Raise ValueError if no candidate would be rejected."""
        if self.top >= tuning.config.num_samples:
            raise ValueError(f"top={self.top} of {tuning.config.num_samples} candidates: nothing would be rejected")

    def collect(self, tuning: Tuning, number: int) -> Collected:
        """Draw the candidates of a round, score them, and keep the best of each group."""
        examples = pick_crops(tuning.examples, tuning.images_here, tuning.config.crop_px, (tuning.seed(1, number),))
        seeds = [tuning.seed(2, number, index) for index in range(len(examples))]
        with self._drawing(tuning):
            drawn = draw_candidates(tuning, examples, seeds, vary_sharpness=tuning.config.vary_sharpness,
                                    expected=tuning.config.expected_targets)  # fmt: skip
        scores = score(tuning, drawn)
        advantages = group_advantages(scores, drawn.keys, max_failure_rate=tuning.config.max_failure_rate,
                                      score_range=tuning.reward.score_range)  # fmt: skip
        best: set[int] = set()
        for key in dict.fromkeys(drawn.keys):
            # One without content is valid, as the worst of its group, but keeps its error: it is never learned.
            members = [k for k, group in enumerate(drawn.keys)
                       if group == key and bool(advantages.kept[k]) and scores.errors[k] is None]  # fmt: skip
            # By the score itself: a clipped advantage could tie. Of equals the earlier one.
            best |= set(sorted(members, key=lambda k: -float(scores.value[k]))[: self.top])
        parts = []
        for piece in drawn.pieces:
            kept = [row for row, index in enumerate(piece.places()) if index in best]
            if kept:
                parts.append(Part(loss=partial(self._loss, tuning, piece, kept), example=drawn.owners[piece.first]))
        return Collected(parts=parts, report=score_report(scores, drawn.keys) | advantages.report())

    def after_round(self, tuning: Tuning, updates: int) -> None:
        """Nothing follows the trained adapter."""

    @staticmethod
    def _drawing(tuning: Tuning) -> AbstractContextManager[None]:
        """Return a context with the sampling model: the present one or, with `expected_targets`, the base model, which
        then also sets the targets. If the trained model set its own targets, every update would sharpen the next
        target and training would never settle.
        """
        return reference(tuning.denoiser.module) if tuning.config.expected_targets else nullcontext()

    def _loss(self, tuning: Tuning, piece: Piece, kept: list[int], generator: torch.Generator) -> LossTerm:
        varied = None if piece.varied is None else piece.varied.rows(kept)
        x0 = piece.trajectory.x0[kept] if varied is None else varied.x0_as_is
        levels = tuning.denoiser.schedule.draw(len(kept), generator)
        noise = random_noise(x0, generator, tuning.config.temperature)
        wanted = None
        if varied is not None:
            with self._drawing(tuning):
                wanted = expected_target(tuning.denoiser, varied, noise, levels)
        errors = denoising_errors(tuning.denoiser, piece.condition.rows(kept), x0, noise, levels, wanted)
        return LossTerm(errors.mean(), len(kept), {"denoising": float(errors.detach().mean())})
