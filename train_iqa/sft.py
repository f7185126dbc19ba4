"""Supervised fine-tuning on conversations: `python -m train_iqa.sft CONFIG.yaml` or `--recipe NAME --data FILE`.

One row per turn; the loss is the mean over the assistant's tokens of a step, and over no others. A share of the
rows rates without words, so that `direct` stays on the model's distribution. Runs on accelerate: one process, or many
under `accelerate launch`, with the same steps on either; a killed run continues with the same curve.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train_iqa.nano.optimizers import cosine_lr
from train_iqa.rows.completions import TrainingRow, answer_logprobs, collate_completions, micro_batches
from train_iqa.rows.conversations import Conversation, read_conversations
from train_iqa.rows.turn_rows import DIRECT, build_row, estimate_length, fitting_protocol, plan_rows, row_kinds
from train_iqa.training.config import run_trainer
from train_iqa.training.learner import load_base, make_accelerator, make_learner, optimizer_step, seed_of, total_of
from train_iqa.training.policy import save_policy
from train_iqa.training.run_state import MetricLog, RunState, open_run, require_readable_images
from train_iqa.training.sft_config import ConversationSource, SftConfig
from zoomiqa_reward.model.direct import trie_of
from zoomiqa_reward.model.reason import refuse_levels
from zoomiqa_reward.runs.digest import file_digest, listing_digest
from zoomiqa_reward.runs.progress import say


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
            worded = [(conversation, kind) for conversation in conversations for kind in row_kinds(conversation)]
            streams.append([self._planned(checkpoint, *pair) for pair in worded])
            weights.append(source.weight)
            wanted += source.weight * len(worded)
            if share:
                streams.append([self._planned(checkpoint, conversation, DIRECT) for conversation in conversations])
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

    Raises ConversationError for data that cannot be used, DatasetProblems for images that cannot be decoded, ValueError
    for a run folder of another configuration and where rows_per_step does not divide evenly over the processes,
    FloatingPointError for a gradient that is not finite.
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
    images = [Path(str(talk.image)) for talks in data for talk in talks]
    require_readable_images(images, config.out, accelerator)
    digests = [*(file_digest(source.path, size=16) for source in config.data), listing_digest(images)]
    with open_run(config, config.out, accelerator, digests):
        checkpoint = load_base(config.model, accelerator, config.tuning)
        refuse_levels(checkpoint.protocol)
        protocol = fitting_protocol(checkpoint.protocol, (talk for talks in data for talk in talks))
        if protocol != checkpoint.protocol:
            name = protocol.name
            say(f"the answers do not begin as protocol {name!r} begins them, so the policy's protocol begins none")
            checkpoint = replace(checkpoint, protocol=protocol)
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
                rows = [
                    [build_row(checkpoint, trie, item.conversation, item.kind) for item in group] for group in planned
                ]
                count = total_of(float(sum(int(row.targets.sum()) for group in rows for row in group)))
                parts = [partial(_share, model, checkpoint, group, count) for group in rows]
                rate = cosine_lr(step, plan.steps, config.learning_rate, warmup=config.warmup_steps)
                loss, norm = optimizer_step(
                    accelerator, model, optimizer, parts, learning_rate=rate, max_norm=config.max_grad_norm
                )
                seconds = time.monotonic() - began
                values = {
                    "loss": total_of(loss), "target_tokens": count, "grad_norm": norm, "learning_rate": rate,
                    "tokens_per_s": total_of(float(sum(r.length for g in rows for r in g))) / seconds,
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
