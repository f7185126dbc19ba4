"""One optimizer step from any number of micro-batches, equal on one process and on many.

Each micro-batch gives its part of a sum that is already divided by the **global** total (tokens or trajectories of
all processes). Processes average their gradients and accelerate divides by the micro-batches; both are undone here,
so the gradient is that of the whole sum, however it was cut.
"""

import math
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from train_iqa.training.policy import trained_parameters


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
    if is_deepspeed and model.gradient_clipping() != max_norm:
        raise ValueError(
            f"max_grad_norm={max_norm}, but gradient_clipping={model.gradient_clipping()} in the DeepSpeed file, which "
            "clips by its own: give both the same number"
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
                found = accelerator.clip_grad_norm_(trained_parameters(model), max_norm or math.inf)
                norm = 0.0 if found is None else float(found)
                if norm != norm or norm == float("inf"):
                    raise FloatingPointError(
                        f"the gradient's norm is {norm} and no weight was changed: lower the learning rate"
                    )
            optimizer.step()
            optimizer.zero_grad()
    return total, norm


def pad_parts(groups: list[list[int]], accelerator: Accelerator) -> tuple[list[list[int]], int]:
    """Return the micro-batches, filled up to the most that any process has, and how many are real.

    A filler repeats the first micro-batch and must count for nothing; without it the processes of a sharded model
    would wait for each other for ever.
    """
    most = max(gather_object([len(groups)]))
    return groups + [groups[0]] * (most - len(groups)), len(groups)


def total_of(accelerator: Accelerator, value: float) -> float:
    """Return the sum of a number over all processes."""
    return float(sum(gather_object([value])))


def gather_rows(accelerator: Accelerator, tensor: Tensor) -> tuple[Tensor, int]:
    """Return the tensors of all processes, one after the other on the CPU, and where this process's part starts.

    They may differ in length.
    """
    pieces = gather_object([tensor.detach().cpu()])
    before = sum(len(piece) for piece in pieces[: accelerator.process_index])
    return torch.cat(pieces), before
