"""Configuration of supervised fine-tuning."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from train_iqa.training.learner import ModelConfig
from train_iqa.training.policy import TuningConfig


@dataclass(frozen=True, kw_only=True)
class ConversationSource:
    """One data set of conversations."""

    path: Path
    """JSONL file; see `train_iqa.rows.conversations`."""
    weight: float = 1.0
    """How often its rows come, relative to those of the other data sets."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"{self.path}: weight={self.weight} must be at least 0")


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """One run of supervised fine-tuning."""

    model: ModelConfig = field(default_factory=ModelConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    data: tuple[ConversationSource, ...] = ()
    out: Path = Path("runs/sft")
    """Run folder; continued if it exists. What was learned is in its `policy`."""
    seed: int = 0
    epochs: float = 3.0
    """Times that each row with words comes, at weight 1; `steps` overrides it."""
    steps: int | None = None
    rows_per_step: int = 64
    """Rows of one optimizer step, over all processes."""
    micro_rows: int = 4
    """Rows of one forward pass of one process."""
    direct_share: float = 0.25
    """Of all rows: those that rate without words."""
    learning_rate: float = 1e-4
    """Peak; then cosine to 2 %."""
    warmup_steps: int = 20
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """0: gradients are not clipped."""
    save_every: int = 100
    """Steps."""
    tensorboard: bool = True

    def __post_init__(self) -> None:
        if self.rows_per_step < 1 or self.micro_rows < 1 or self.rows_per_step % self.micro_rows:
            raise ValueError(
                f"rows_per_step={self.rows_per_step} must be a multiple of micro_rows={self.micro_rows}, both >= 1"
            )
        if not 0 <= self.direct_share < 1 or self.epochs <= 0 or (self.steps is not None and self.steps < 1):
            raise ValueError(
                f"direct_share={self.direct_share} must be in [0, 1), epochs={self.epochs} above 0, "
                f"steps={self.steps} at least 1"
            )
        if self.seed < 0 or (self.data and not any(source.weight for source in self.data)):
            raise ValueError(f"seed={self.seed} must be 0 or more, and not every weight of the data 0")
        if not self.max_grad_norm >= 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm}: must be above 0, or 0 for no clipping")
        if self.learning_rate <= 0 or self.warmup_steps < 0 or self.save_every < 1:
            raise ValueError(
                f"learning_rate={self.learning_rate} must be above 0, warmup_steps={self.warmup_steps} at least 0, "
                f"save_every={self.save_every} at least 1"
            )
