"""Zoom-IQA in BasicSR: two losses and a metric, registered when this is imported.

`python -m zoomiqa_reward.integrations.basicsr_train -opt train.yml` is BasicSR's own training with them. In a script of
your own, import this module before BasicSR reads its options. The YAML file may then contain

    train:  pixel_opt: {type: L1Loss, loss_weight: 1.0}
            perceptual_opt: {type: ZoomIQAPerceptualLoss, loss_weight: 0.05}
    val:    metrics: {zoomiqa: {type: calculate_zoomiqa, model: nano, better: higher}}

BasicSR reads two values, perceptual and style loss, from `perceptual_opt`, and one from every other loss: use
`ZoomIQAPerceptualLoss` there and `ZoomIQALoss` elsewhere, which is that of `rewards/loss.py`. The rating alone rewards
invented detail: keep a fidelity loss too.
"""

import logging
import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoomiqa_reward.integrations.named import refuse_misspelt
from zoomiqa_reward.rewards.loss import ZoomIQALoss, shared_model
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

logging.getLogger(ZoomIQALoss.__module__).parent = logging.getLogger("basicsr")  # its log holds what the losses report
LOSS_REGISTRY.register(ZoomIQALoss)


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
    **others: object,
) -> float:
    """Return the rating 1..5 of one image as BasicSR's validation passes it; NaN where it cannot be measured.

    img: BGR in [0, 255] (uint8, or float, which is not rounded), HWC or CHW by `input_order`, or grey HW. crop_border:
    pixels cut from each side before. img2, the reference, is ignored. others: options of BasicSR's own (`better`, ...).
    Raises ValueError for another order, shape or range, and a misspelt option.
    """
    del img2
    refuse_misspelt(others, ("crop_border", "input_order", "model", "mode", "device"))
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
    scores = ZoomIQAReward(shared_model(model, device), mode=mode)(image)
    return float(scores.value[0]) if bool(scores.valid[0]) else math.nan
