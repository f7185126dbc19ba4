"""Supervised fine-tuning on conversations: `python -m train_iqa.sft CONFIG.yaml` or `--recipe NAME --data FILE`.

One row a turn; the loss is on the assistant's tokens alone, as the mean over all such tokens of a step. A share of the
rows rates without words, so that `direct` stays on the model's distribution. Runs on accelerate: one process, or many
under `accelerate launch`, with the same steps on either; a killed run continues with the same curve.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train_iqa.nano.schedule import cosine_lr
from train_iqa.rows.completions import TrainingRow, answer_logprobs, collate_completions, micro_batches
from train_iqa.rows.conversations import Conversation, read_conversations
from train_iqa.rows.schedule import plan_rows
from train_iqa.rows.turn_rows import DIRECT, build_row, estimate_length, row_kinds
from train_iqa.training.command import run_trainer
from train_iqa.training.learner import ModelConfig, load_base, make_accelerator, make_learner, seed_of
from train_iqa.training.metrics import MetricLog
from train_iqa.training.policy import TuningConfig, save_policy
from train_iqa.training.run_state import RunState, open_run
from train_iqa.training.updates import optimizer_step, total_of
from zoomiqa_reward.model.direct import trie_of


@dataclass(frozen=True, kw_only=True)
class ConversationSource:
    """One data set of conversations."""

    path: Path
    """JSONL file; see `train_iqa.rows.conversations`."""
    weight: float = 1.0
    """How often its rows come, relative to those of the other data sets."""


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
        if not self.max_grad_norm >= 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm}: must be above 0, or 0 for no clipping")
        if self.learning_rate <= 0 or self.warmup_steps < 0 or self.save_every < 1:
            raise ValueError(
                f"learning_rate={self.learning_rate} must be above 0, warmup_steps={self.warmup_steps} at least 0, "
                f"save_every={self.save_every} at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """One row to come."""

    conversation: Conversation
    kind: str
    length: int
    """Estimated tokens, for putting like lengths together."""


class _Plan:
    """All rows of a run in their order."""

    def __init__(self, config: SftConfig, data: Sequence[Sequence[Conversation]], checkpoint: Any) -> None:
        streams: list[list[_Planned]] = []
        weights: list[float] = []
        wanted = 0.0
        share = config.direct_share / (1 - config.direct_share)
        for source, conversations in zip(config.data, data, strict=True):
            worded = [(one, kind) for one in conversations for kind in row_kinds(one)]
            streams.append([self._planned(checkpoint, *pair) for pair in worded])
            weights.append(source.weight)
            wanted += source.weight * len(worded)
            if share:
                streams.append([self._planned(checkpoint, one, DIRECT) for one in conversations])
                weights.append(source.weight * share * len(worded) / len(conversations))
        total = round(wanted * config.epochs * (1 + share))
        self.steps = config.steps or max(1, -(-total // config.rows_per_step))
        self.rows_per_step, self.streams = config.rows_per_step, streams
        order = plan_rows([len(s) for s in streams], weights, self.steps * config.rows_per_step, config.seed)
        self.order = order.reshape(self.steps, config.rows_per_step, 2)

    @staticmethod
    def _planned(checkpoint: Any, conversation: Conversation, kind: str) -> _Planned:
        length = estimate_length(checkpoint, conversation, kind)
        return _Planned(conversation=conversation, kind=kind, length=length)

    def step(self, step: int, micro_rows: int) -> list[list[_Planned]]:
        """Return the micro-batches of a step, of all processes; each holds rows of like length."""
        rows = [self.streams[source][index] for source, index in self.order[step]]
        return [[rows[k] for k in group] for group in micro_batches([row.length for row in rows], micro_rows)]


def target_nll(model: Any, checkpoint: Any, rows: Sequence[TrainingRow]) -> Tensor:
    """Return the sum of -log p over the rows' target tokens, at least 0; keeps autograd."""
    batch = collate_completions(checkpoint, rows)
    logprobs, _ = answer_logprobs(model, batch)
    return -(logprobs * batch.targets).sum()


def _share(model: Any, checkpoint: Any, rows: Sequence[TrainingRow], count: float) -> Tensor:
    return target_nll(model, checkpoint, rows) / count


def train(config: SftConfig) -> Path:
    """Run what is missing of the training and return the folder of what was learned.

    Raises ConversationError for data that cannot be used, ValueError for a run folder of another configuration and
    where rows_per_step does not divide evenly over the processes, FloatingPointError for a gradient that is not finite.
    """
    if not config.data:
        raise ValueError("no data: give at least one JSONL file of conversations")
    data = [read_conversations(source.path) for source in config.data]
    accelerator = make_accelerator(config.model)
    world, rank = accelerator.num_processes, accelerator.process_index
    if config.rows_per_step % (config.micro_rows * world):
        raise ValueError(
            f"rows_per_step={config.rows_per_step} must be a multiple of micro_rows x processes = "
            f"{config.micro_rows} x {world}"
        )
    open_run(config, config.out, accelerator)
    checkpoint = load_base(config.model, accelerator, config.tuning)
    plan, trie = _Plan(config, data, checkpoint), trie_of(checkpoint)
    model, optimizer = make_learner(
        checkpoint, accelerator, config.tuning, weight_decay=config.weight_decay, seed=config.seed
    )
    state = RunState(config.out, accelerator, model, optimizer)
    start = state.load()
    with MetricLog(
        config.out, resumed_at=start, is_main=accelerator.is_main_process, tensorboard=config.tensorboard
    ) as log:
        for step in range(start, plan.steps):
            began = time.monotonic()
            torch.manual_seed(seed_of(config.seed, step, rank))  # dropout, if any
            planned = plan.step(step, config.micro_rows)[rank::world]
            rows = [[build_row(checkpoint, trie, one.conversation, one.kind) for one in group] for group in planned]
            count = total_of(accelerator, float(sum(int(row.targets.sum()) for group in rows for row in group)))
            parts = [partial(_share, model, checkpoint, group, count) for group in rows]
            rate = cosine_lr(step, plan.steps, config.learning_rate, warmup=config.warmup_steps)
            loss, norm = optimizer_step(
                accelerator, model, optimizer, parts, learning_rate=rate, max_norm=config.max_grad_norm
            )
            seconds = time.monotonic() - began
            values = {
                "loss": total_of(accelerator, loss), "target_tokens": count, "grad_norm": norm, "learning_rate": rate,
                "tokens_per_s": total_of(accelerator, float(sum(r.length for g in rows for r in g))) / seconds,
            }  # fmt: skip
            log.write(step + 1, values)
            if (step + 1) % config.save_every == 0 or step + 1 == plan.steps:
                state.save(step + 1)
    save_policy(checkpoint, accelerator, model, config.tuning, config.out / "policy")
    return config.out / "policy"


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    return run_trainer(
        argv, name="sft", description=__doc__, kind=SftConfig, train=train,
        read_data=lambda path: ConversationSource(path=Path(path)), data_help="JSONL file of conversations",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
