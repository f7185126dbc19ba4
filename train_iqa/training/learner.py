"""A model that learns on accelerate, as SFT and RL set it up, and its optimizer step.

A step takes any number of micro-batches and is equal on one process and on many. Each micro-batch gives its part of a
sum that is already divided by the **global** total (tokens or trajectories of all processes). Processes average their
gradients and accelerate divides by the micro-batches; both are undone here, so the gradient is that of the whole sum,
however it was cut.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from train_iqa.training.policy import TuningConfig, make_trainable, trained_parameters
from zoomiqa_reward.model.checkpoint import Checkpoint, load_checkpoint
from zoomiqa_reward.model.draws import own_draws
from zoomiqa_reward.protocol import Protocol

DTYPES = ("float32", "bfloat16", "float16")


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
        if self.dtype not in ("auto", *DTYPES):
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
    """Return (model, AdamW), prepared by accelerate; a LoRA's first values depend on the seed alone.

    Buffers keep their type and values: DeepSpeed in half precision rounds them as well, and with the rotary frequencies
    among them the positions of a long prompt. Inference, which loads the result, does not round them.
    """
    with own_draws(seed):
        model = make_trainable(checkpoint.model, tuning)
    exact = [buffer.clone() for buffer in model.buffers()]
    optimizer = torch.optim.AdamW(trained_parameters(model), lr=0.0, weight_decay=weight_decay)
    model, optimizer = accelerator.prepare(model, optimizer)
    for buffer, values in zip(accelerator.unwrap_model(model).buffers(), exact, strict=True):
        buffer.data = values.to(buffer.device)
    model.train()
    return model, optimizer


def seed_of(*parts: int) -> int:
    """Return a seed below 2^63 made of several numbers; other numbers or another order give another seed."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def optimizer_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Callable[[], Tensor]],
    *,
    learning_rate: float,
    max_norm: float,
) -> tuple[float, float]:
    """Take one step on the sum of `parts` over all processes; return (this process's sum, norm before clipping).

    max_norm: 0 clips nothing. Every process must bring equally many parts: `pad_parts` sees to it. Raises
    FloatingPointError, before any weight is touched, where the gradient is not finite; ValueError where DeepSpeed's
    file clips otherwise.
    """
    is_deepspeed = accelerator.distributed_type.value == "DEEPSPEED"
    engine: Any = model  # DeepSpeed's wrapper says how it clips
    if is_deepspeed and engine.gradient_clipping() != max_norm:
        raise ValueError(
            f"max_grad_norm={max_norm}, but gradient_clipping={engine.gradient_clipping()} in the DeepSpeed file, "
            "which clips by its own: give both the same number"
        )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    accelerator.gradient_accumulation_steps = len(parts)
    accelerator.step = 0
    # DeepSpeed's engine divides by the accumulation of its own file, which is 1.
    scale = accelerator.num_processes * (1 if is_deepspeed else len(parts))
    total, norm = 0.0, 0.0
    for part in parts:
        with accelerator.accumulate(model):
            loss = part()
            total += float(loss.detach())
            accelerator.backward(loss * scale)
            if accelerator.sync_gradients:
                results = accelerator.clip_grad_norm_(trained_parameters(model), max_norm or math.inf)
                norm = 0.0 if results is None else float(results)
                if norm != norm or norm == float("inf"):
                    raise FloatingPointError(
                        f"the gradient's norm is {norm} and no weight was changed: lower the learning rate"
                    )
            optimizer.step()
            optimizer.zero_grad()
    return total, norm


def pad_parts(groups: list[list[int]]) -> tuple[list[list[int]], int]:
    """Return the micro-batches, filled up to the most that any process has, and how many are real.

    A filler repeats the first micro-batch and must count for nothing; without it the processes of a sharded model
    would wait for each other forever.
    """
    most = max(gather_object([len(groups)]))
    return groups + [groups[0]] * (most - len(groups)), len(groups)


def total_of(value: float) -> float:
    """Return the sum of a number over all processes."""
    return float(sum(gather_object([value])))


def gather_rows(accelerator: Accelerator, tensor: Tensor) -> tuple[Tensor, int]:
    """Return the tensors of all processes, one after the other on the CPU, and where this process's part starts.

    They may differ in length.
    """
    pieces = gather_object([tensor.detach().cpu()])
    before = sum(len(piece) for piece in pieces[: accelerator.process_index])
    return torch.cat(pieces), before
