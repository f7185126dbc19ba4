"""Zoom-IQA in BasicSR: two losses and a metric, registered when this is imported.

`python -m zoomiqa_reward.integrations.basicsr_train -opt train.yml` is BasicSR's own training with them. In a script of
your own, import this module before BasicSR reads its options. The YAML file may then contain

    train:  pixel_opt: {type: L1Loss, loss_weight: 1.0}
            perceptual_opt: {type: ZoomIQAPerceptualLoss, loss_weight: 0.05}
    val:    metrics: {zoomiqa: {type: calculate_zoomiqa, model: nano, better: higher}}

BasicSR reads two values, perceptual and style loss, from `perceptual_opt`, and one from every other loss: use
`ZoomIQAPerceptualLoss` there and `ZoomIQALoss` elsewhere. The rating alone rewards invented detail: keep a fidelity
loss too.
"""

import logging
import math
import warnings
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zoomiqa_reward.model.zoomiqa import ZoomIQA
from zoomiqa_reward.rewards.restorations import PREFIX
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from basicsr.utils.registry import LOSS_REGISTRY, METRIC_REGISTRY
except ImportError as error:
    raise ImportError(
        f"zoomiqa_reward.integrations.basicsr needs basicsr ({error}): pip install 'zoomiqa-reward[restoration]'; "
        "if libGL is missing, install the Debian package libgl1"
    ) from error

_LOG = logging.getLogger("basicsr")
MAX_EMPTY_BATCHES = 100
"""Batches in a row without any image that shows something, before training stops."""


@LOSS_REGISTRY.register()
class ZoomIQALoss(nn.Module):
    """loss_weight * mean over the batch of (5 - rating) / 4: 0 for excellent images, loss_weight for bad ones.

    The model is kept outside the module tree: it is in no state_dict, and `.to()` does not move it.
    `empty_batches` counts the batches in a row that had no content (random crops of sky, an untrained network).
    """

    empty_batches = 0

    def __init__(
        self,
        loss_weight: float = 1.0,
        model: str = "nano",
        device: str | None = None,
        gradient_checkpointing: bool = False,
        strict: bool = True,
        reduction: str = "mean",
    ) -> None:
        """Load `model` (a name, a folder or a hub id) onto `device`. reduction: `mean` or `sum`."""
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction={reduction!r}: must be mean or sum")
        self.loss_weight = float(loss_weight)
        self.reduction = reduction
        self.reward = ZoomIQAReward(_load(model, device), strict=strict, gradient_checkpointing=gradient_checkpointing)

    def forward(self, pred: Tensor, target: object = None, weight: object = None, **_: object) -> Tensor:
        """Return the loss of a float BCHW batch in [0, 1]; `target` is ignored.

        Values outside [0, 1] are clamped before the rating, and the gradient passes the clamp unchanged. An image that
        cannot be measured is left out of the mean. If no image of the batch has content, the loss is 0 with a zero
        gradient, and the log gets a line; `MAX_EMPTY_BATCHES` such batches in a row raise RuntimeError, and so
        does a batch that cannot be measured for another reason, such as NaN. Raises ValueError for a `weight`.
        """
        if weight is not None:
            raise ValueError("ZoomIQALoss takes no weight: a rating is of the whole image; leave it out")
        pred = pred + (pred.clamp(0, 1) - pred).detach()
        scores = self.reward(pred, grad=pred.requires_grad and torch.is_grad_enabled())
        if not bool(scores.valid.any()):
            self._note_empty([error or "" for error in scores.errors])
            return 0.0 * pred.sum()  # keeps the graph: the caller will call backward
        self.empty_batches = 0
        losses = (5 - scores.value[scores.valid]) / 4
        total = losses.mean() if self.reduction == "mean" else losses.sum()
        return (self.loss_weight * total).to(pred.device)

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
            _LOG.warning("ZoomIQALoss takes no part in a step: %s", errors[0])


@LOSS_REGISTRY.register()
class ZoomIQAPerceptualLoss(ZoomIQALoss):
    """`ZoomIQALoss` in the form of BasicSR's `perceptual_opt`: beside a pixel loss, as (perceptual, style)."""

    def forward(self, pred: Tensor, target: object = None, weight: object = None, **_: object) -> tuple[Tensor, None]:  # type: ignore[override] # the pair is BasicSR's form
        """Return (loss of `ZoomIQALoss`, None): there is no style loss. Raises what that loss raises."""
        return super().forward(pred, target, weight), None


@METRIC_REGISTRY.register()  # type: ignore[untyped-decorator] # basicsr has no types
def calculate_zoomiqa(
    img: NDArray[np.uint8] | NDArray[np.float32],
    img2: NDArray[np.uint8] | NDArray[np.float32] | None = None,
    crop_border: int = 0,
    input_order: str = "HWC",
    model: str = "nano",
    mode: str = "direct",
    device: str | None = None,
    **_: object,
) -> float:
    """Return the rating 1..5 of one image as BasicSR's validation passes it; NaN where it cannot be measured.

    img: BGR in [0, 255] (uint8, or float, which is not rounded), HWC or CHW by `input_order`, or grey HW. crop_border:
    pixels cut from each side before. img2, the reference, is ignored. Other options (`better`, ...) are
    BasicSR's own. Raises ValueError for another order, shape or range.
    """
    del img2
    if input_order not in ("HWC", "CHW"):
        raise ValueError(f"input_order={input_order!r}: must be HWC or CHW")
    pixels = np.asarray(img, dtype=np.float32)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    elif input_order == "CHW":
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(f"img of shape {np.shape(img)} in order {input_order}: must have 1 or 3 channels")
    if min(pixels.shape[:2]) <= 2 * crop_border:
        raise ValueError(f"crop_border={crop_border} leaves nothing of {pixels.shape[1]} x {pixels.shape[0]} px")
    if crop_border:
        pixels = pixels[crop_border:-crop_border, crop_border:-crop_border]
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"img holds {pixels.min():.4g}..{pixels.max():.4g}: must be in [0, 255]")
    image = torch.from_numpy(np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1))) / 255
    scores = ZoomIQAReward(_load(model, device), mode=mode)(image)
    return float(scores.value[0]) if bool(scores.valid[0]) else math.nan


@lru_cache(maxsize=4)
def _load(model: str, device: str | None) -> ZoomIQA:
    """Return the model; the same one for the same arguments."""
    return ZoomIQA.from_pretrained(model, device=device)
