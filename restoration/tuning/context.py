"""What an algorithm works with, and what it gives back to the trainer."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from restoration.tuning.config import TuneConfig
from restoration.tuning.data import Example
from restoration.tuning.denoisers.base import Denoiser, with_autocast
from restoration.tuning.offload import Offloader
from restoration.tuning.sampler.transitions import NoisePath
from zoomiqa_reward.rewards.base import Reward


@dataclass(frozen=True, kw_only=True, eq=False)
class Tuning:
    """A run, as algorithms see it."""

    denoiser: Denoiser
    """Its `predict` runs under `autocast`; encoding and decoding stay float32."""
    reward: Reward
    examples: Sequence[Example]
    """This process's share of the training images."""
    config: TuneConfig
    share: Offloader
    folder: Path
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    process: int = 0
    num_processes: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "denoiser", with_autocast(self.denoiser, self.autocast))

    @property
    def path(self) -> NoisePath:
        """The sampler's steps."""
        return replace(self.denoiser.path(self.config.steps), temperature=self.config.temperature)

    @property
    def images_here(self) -> int:
        """LR images of a round in this process; `tune` sees to it that they can be shared out evenly."""
        return self.config.images_per_round // self.num_processes

    def seed(self, *parts: int) -> int:
        """Return a seed that depends on the run's seed, this process and the numbers given, and on nothing else."""
        low, high = np.random.SeedSequence([self.config.seed, self.process, *parts]).generate_state(2, np.uint32)
        return (int(high) << 21) | (int(low) >> 11)


class Asked(NamedTuple):
    """Candidates that were scored inside a loss."""

    total: int
    failures: list[str]
    """Why the others could not be scored, one reason each."""
    empty: int
    """Those without content; they are no failures."""


class LossTerm(NamedTuple):
    """What one part of a round says."""

    value: Tensor | None
    """Mean over its rows, with a graph; None: nothing could be measured."""
    rows: int
    """What the mean weighs."""
    report: dict[str, float]
    """Means over its rows."""
    asked: Asked | None = None
    """None: the scores were known before, and `collect` has counted them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """What goes through the denoiser at once; the gradients of a step's parts add up."""

    loss: Callable[[torch.Generator], LossTerm]
    """The generator is for the loss's own noise; the same seed gives the same loss."""
    example: Example
    """The image that it is about."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Collected:
    """A round's material."""

    parts: list[Part]
    report: dict[str, float] = field(default_factory=dict)
    """For the log. Over several processes an int is added up, a `progress.Mean` is weighted by its count, and another
    float is averaged."""


class Algorithm(Protocol):
    """One way to learn from scores: a frozen dataclass of its settings.

    One that has work to do once, before the first round of a session, has `begin(tuning)` too.
    """

    name: str
    adapters: tuple[str, ...]
    """LoRA adapters that it needs; the first is trained."""

    def prepare(self, tuning: Tuning) -> None:
        """Check settings, reward and images once in a session, before the run has a folder or adapters.

        What is refused here leaves nothing behind.
        """
        ...

    def collect(self, tuning: Tuning, number: int) -> Collected:
        """Return round `number`'s material."""
        ...

    def after_round(self, tuning: Tuning, updates: int) -> None:
        """Do what follows the updates; `updates` were made since the start of the run."""
        ...
