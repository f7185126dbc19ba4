"""The rating as a loss: any training loop that calls `loss(output)` with a batch of images. Needs no other library."""

import copy
import logging
import warnings
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from zoomiqa_reward.model.zoomiqa import ZoomIQA
from zoomiqa_reward.rewards.restorations import PREFIX
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

LOG = logging.getLogger(__name__)
M = TypeVar("M", bound=nn.Module)
MAX_EMPTY_BATCHES = 100
"""Batches in a row without any image that shows something, before training stops."""


class ZoomIQALoss(nn.Module):
    """loss_weight * mean over the batch of (5 - rating) / 4: 0 for excellent images, loss_weight for bad ones.

    The rating alone rewards invented detail: add a fidelity loss. The model is kept outside the module tree: it is in
    no state_dict, `.to()` does not move it, and a deep copy shares it. `empty_batches` counts the batches in a row that
    had no content (random crops of sky, an untrained network).
    """

    empty_batches = 0

    def __init__(
        self,
        loss_weight: float = 1.0,
        model: str | ZoomIQA = "nano",
        device: str | None = None,
        gradient_checkpointing: bool = False,
        strict: bool = True,
        reduction: str = "mean",
    ) -> None:
        """Load `model` (a name, a folder, a hub id, or a loaded one) onto `device`. reduction: `mean` or `sum`."""
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction={reduction!r}: must be mean or sum")
        self.loss_weight = float(loss_weight)
        self.reduction = reduction
        iqa = model if isinstance(model, ZoomIQA) else shared_model(model, device)
        self.reward = ZoomIQAReward(iqa, strict=strict, gradient_checkpointing=gradient_checkpointing)

    def forward(self, pred: Tensor, target: object = None, weight: object = None, **_: object) -> Tensor:
        """Return the loss of a float BCHW batch in [0, 1], a tensor of one element; `target` is ignored.

        Values outside [0, 1] are clamped before the rating, and the gradient passes the clamp unchanged. An image that
        cannot be measured is left out of the mean. If no image of the batch has content, the loss is 0 with a zero
        gradient, and the log gets a line; `MAX_EMPTY_BATCHES` such batches in a row raise RuntimeError, and so
        does a batch that cannot be measured for another reason, such as NaN. Raises ValueError for a `weight` and
        for a batch of no images.
        """
        if weight is not None:
            raise ValueError("ZoomIQALoss takes no weight: a rating is of the whole image; leave it out")
        if not len(pred):
            raise ValueError(f"pred {tuple(pred.shape)} holds no images: leave such a batch out")
        pred = clamped(pred)
        scores = self.reward(pred, grad=pred.requires_grad and torch.is_grad_enabled())
        if not bool(scores.valid.any()):
            self._note_empty([error or "" for error in scores.errors])
            return 0.0 * pred.sum()  # keeps the graph: the caller will call backward
        self.empty_batches = 0
        losses = (5 - scores.value[scores.valid]) / 4
        total = losses.mean() if self.reduction == "mean" else losses.sum()
        return (self.loss_weight * total).to(pred.device)

    def __deepcopy__(self, memo: dict[int, object]) -> "ZoomIQALoss":
        return share_reward(self, memo)

    def _note_empty(self, errors: list[str]) -> None:
        """Count a batch without any value. Raises RuntimeError unless none of its images has content."""
        self.empty_batches += 1
        wrong = next((error for error in errors if not error.startswith(PREFIX)), None)
        if wrong is not None:
            raise RuntimeError(f"ZoomIQALoss: none of {len(errors)} images could be measured: {wrong}")
        if self.empty_batches >= MAX_EMPTY_BATCHES:
            raise RuntimeError(
                f"ZoomIQALoss: no image had content in {self.empty_batches} batches in a row: {errors[0]}; train with "
                "a fidelity loss alone first, or on larger crops"
            )
        if self.empty_batches == 1:
            LOG.warning("ZoomIQALoss takes no part in a step: %s", errors[0])


def share_reward(module: M, memo: dict[int, object]) -> M:
    """Return a deep copy of a module that shares its `reward`: an average of weights or a clone needs no second judge.

    memo: as `__deepcopy__` gets it.
    """
    memo[id(module.reward)] = module.reward
    twin = module.__class__.__new__(module.__class__)
    memo[id(module)] = twin
    state = copy.deepcopy(module.__getstate__(), memo)  # type: ignore[no-untyped-call] # torch's has no types
    twin.__setstate__(state)  # type: ignore[no-untyped-call] # torch's has no types
    return twin


def clamped(batch: Tensor) -> Tensor:
    """Return a float batch clamped to [0, 1]; its gradient passes as if it were not clamped.

    What a network puts out may leave the range a little, and a gradient of 0 there would never bring it back. If a
    tenth of the values is further away than `FAR`, the range is another one, such as -1..1; a warning says so once.
    """
    excess = (batch.clamp(0, 1) - batch).detach()
    if not _TOLD and float((excess.abs() > FAR).float().mean()) > 0.1:
        _TOLD.append(batch.shape)
        low, high = batch.detach().aminmax()
        warnings.warn(
            f"a batch of values {float(low):.3g}..{float(high):.3g} is clamped to [0, 1] before it is rated: divide "
            "0..255 by 255, map -1..1 by (x + 1) / 2; an untrained network may go on",
            stacklevel=3,
        )
    # Exact where half precision would round batch + excess: 300 + (1 - 300) is 0 in bfloat16.
    return batch.detach().clamp(0, 1) + (batch - batch.detach())


FAR = 0.25
"""Distance from [0, 1] that a network does not reach by overshooting."""
_TOLD: list[torch.Size] = []
"""The first batch that a warning was given about."""


@lru_cache(maxsize=4)
def shared_model(model: str, device: str | None) -> ZoomIQA:
    """Return the model of a name, a folder or a hub id; the same object for the same arguments."""
    return ZoomIQA.from_pretrained(model, device=device)
