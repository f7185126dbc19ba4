"""From a checkpoint's name to a model that learns on accelerate: what SFT and RL set up alike."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from train_iqa.training.policy import TuningConfig, make_trainable, trained_parameters
from zoomiqa_reward.model.checkpoint import Checkpoint, load_checkpoint
from zoomiqa_reward.model.own_draws import own_draws
from zoomiqa_reward.protocol import Protocol


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The checkpoint that training starts from."""

    name: str = "nano"
    """Embedded name, folder or hub id."""
    adapter: str | None = None
    """LoRA of an earlier stage (SFT); merged into the weights, so that it is part of what training starts from."""
    protocol: Protocol | str | None = None
    """How the model is asked: a Protocol or its file; None: the one beside the weights."""
    dtype: str = "auto"
    """Of the weights; auto: bfloat16 for LoRA on a GPU, else float32 (small updates vanish in bfloat16 weights; mixed
    precision is the launcher's)."""
    device: str | None = None
    """`cpu` keeps the run off the GPU; None: what accelerate finds."""

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype {self.dtype!r}: must be auto, float32, bfloat16 or float16")
        if self.device not in (None, "cpu"):
            raise ValueError(f"device {self.device!r}: must be cpu or None; GPUs are chosen by the launcher")


def make_accelerator(config: ModelConfig) -> Accelerator:
    """Return the accelerator: one process, or what `accelerate launch` started.

    DeepSpeed wants to know a batch size, which accelerate reads off a dataloader. The trainers cut their own
    micro-batches and prepare none, so the size is set here. It scales nothing: `optimizer_step` weighs the losses.
    """
    accelerator = Accelerator(cpu=config.device == "cpu")
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
    return accelerator


def load_base(config: ModelConfig, accelerator: Accelerator, tuning: TuningConfig) -> Checkpoint:
    """Return the frozen checkpoint; sharded runs load it on the CPU and move the shards."""
    is_sharded = accelerator.distributed_type.value in ("FSDP", "DEEPSPEED")
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if tuning.is_lora and accelerator.device.type == "cuda" else "float32"
    return load_checkpoint(
        config.name, device="cpu" if is_sharded else accelerator.device, dtype=dtype, adapter=config.adapter,
        protocol=config.protocol,
    )  # fmt: skip


def make_learner(
    checkpoint: Checkpoint, accelerator: Accelerator, tuning: TuningConfig, *, weight_decay: float, seed: int
) -> tuple[nn.Module, Any]:
    """Return (model, AdamW), prepared by accelerate; a LoRA's first values depend on the seed alone."""
    with own_draws(seed):
        model = make_trainable(checkpoint.model, tuning)
    optimizer = torch.optim.AdamW(trained_parameters(model), lr=0.0, weight_decay=weight_decay)
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    return model, optimizer


def seed_of(*parts: int) -> int:
    """Return a seed below 2^63 made of several numbers; other numbers or another order give another seed."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> np.uint64(1))
