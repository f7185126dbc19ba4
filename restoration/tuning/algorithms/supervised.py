"""Learning from ground truths alone, with no reward: the control for all algorithms that have one.

The loss is `truth_error`, so `TuneConfig.truth_states` says at which states the truth is told. At the states that the
sampler itself comes to, the model unlearns grain of its own: at a temperature below 1 it takes its own detail for the
image's. What a reward adds is what its run has beyond this one's.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from restoration.tuning.context import Collected, LossTerm, Part, Tuning
from restoration.tuning.data import Example, pick_crops
from restoration.tuning.lora import POLICY
from restoration.tuning.sampler.denoising import truth_error


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """It has no settings of its own."""

    name: ClassVar[str] = "supervised"
    adapters: ClassVar[tuple[str, ...]] = (POLICY,)

    def prepare(self, tuning: Tuning) -> None:
        """Raise ValueError for an image without a ground truth, and for a second loss of the same kind."""
        without = [example.name for example in tuning.examples if example.hr is None]
        if without:
            raise ValueError(f"{without[0]} has no ground truth, and supervised learns from nothing else: give it")
        if tuning.config.truth_weight:
            raise ValueError(
                f"truth_weight={tuning.config.truth_weight} adds to another algorithm what supervised does: set it to 0"
            )

    def collect(self, tuning: Tuning, number: int) -> Collected:
        """Choose a round's crops; each teaches at `num_samples` states."""
        crops = pick_crops(tuning.examples, tuning.images_here, tuning.config.crop_px, (tuning.seed(1, number),))
        return Collected(parts=[Part(loss=partial(self._loss, tuning, crop), example=crop) for crop in crops])

    def after_round(self, tuning: Tuning, updates: int) -> None:
        """Nothing follows the trained adapter."""

    def _loss(self, tuning: Tuning, example: Example, generator: torch.Generator) -> LossTerm:
        rows = tuning.config.num_samples
        error = truth_error(tuning, example, rows, generator)
        return LossTerm(error, rows, {"truth": float(error.detach())})
