"""How close an image is to its reference, or to the low-quality image it was made from; nothing is fetched.

Every function takes float CHW tensors in [0, 1], grey as three equal channels, and returns a float; NaN where the image
is too small to be measured, or holds a pixel that is no number. It computes in float32, whatever the images are in.
Other kinds, shapes and ranges raise ImageError, a ValueError.
PSNR and SSIM are BasicSR's, on 8-bit values as a PNG would hold them; the others piq's, on floats.
"""

import math

import numpy as np
import torch
from torch import Tensor

from restoration.metrics.basicsr_library import basicsr_module
from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.images.filters import gaussian_blur, resize_bicubic
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.model.numerics import canonical

BORDER_PX = 4
"""Cut from each side by PSNR-Y and SSIM-Y unless told: the scale of x4 super-resolution, as its papers do."""
SSIM_WINDOW_PX = 11
VIF_MIN_SIDE_PX = 41
HAARPSI_MIN_SIDE_PX = 16
LR_BORDER_PX = 2
LR_BLUR_PX = 1.0
PSNR_CAP_DB = 100.0
"""PSNR-Y of equal images: the best value, and a number that means, JSON and order can hold."""
LR_CONSISTENCY_CAP_DB = 50.0
"""Above this the two agree within 8-bit rounding, and more means nothing."""
_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)  # BT.601 of RGB in 0..1, without its offset


class MetricUnavailable(ZoomIQAError, ImportError):
    """A metric's library or weights are not there; the message says what to install or to give."""


@canonical
def psnr_y(image: Tensor, reference: Tensor, *, border_px: int = BORDER_PX, channel: str = "y") -> float:
    """Return PSNR in dB on BT.601 luma, `border_px` cut from each side; 100 for equal images.

    channel: "y", or "rgb" for the error over all three channels.
    Raises ValueError on different sizes, MetricUnavailable without BasicSR. Source: BasicSR's `calculate_psnr`.
    """
    value = _basicsr_pair("calculate_psnr", image, reference, border_px, channel, least=1)
    return value if math.isnan(value) else min(value, PSNR_CAP_DB)


@canonical
def ssim_y(image: Tensor, reference: Tensor, *, border_px: int = BORDER_PX, channel: str = "y") -> float:
    """Return SSIM (-1..1, higher is better) on BT.601 luma, `border_px` cut from each side.

    channel: "y", or "rgb" for the mean of the three channels.
    Raises ValueError on different sizes, MetricUnavailable without BasicSR.
    Source: Wang et al. 2004 (window 11, sigma 1.5), BasicSR's `calculate_ssim`.
    """
    return _basicsr_pair("calculate_ssim", image, reference, border_px, channel, least=SSIM_WINDOW_PX)


@canonical
@torch.no_grad()
def fsim(image: Tensor, reference: Tensor) -> float:
    """Return FSIM (colour version, 0..1, higher is better) of a CHW image against its reference of the same size.

    Raises ValueError on different sizes. Source: Zhang et al. 2011, piq's implementation.
    """
    return _piq_pair("fsim", image, reference, least=1)


@canonical
@torch.no_grad()
def vif(image: Tensor, reference: Tensor) -> float:
    """Return VIF in the pixel domain (0..1, above 1 where contrast exceeds the reference's; higher is better).

    NaN below 41 px. Raises ValueError on different sizes. Source: Sheikh and Bovik 2006, piq's `vif_p`.
    """
    return _piq_pair("vif_p", image, reference, least=VIF_MIN_SIDE_PX)


@canonical
@torch.no_grad()
def haarpsi(image: Tensor, reference: Tensor) -> float:
    """Return HaarPSI (0..1, higher is better); NaN below 16 px. A label metric: never a judge of nano.

    Raises ValueError on different sizes. Source: Reisenhofer et al. 2018, piq's implementation.
    """
    return _piq_pair("haarpsi", image, reference, least=HAARPSI_MIN_SIDE_PX)


@canonical
@torch.no_grad()
def mdsi(image: Tensor, reference: Tensor) -> float:
    """Return MDSI (0 equal, about 0.6 bad: **lower is better**). A label metric: never a judge of nano.

    Raises ValueError on different sizes. Source: Nafchi et al. 2016, piq's implementation.
    """
    return _piq_pair("mdsi", image, reference, least=3)


@canonical
@torch.no_grad()
def lr_consistency(image: Tensor, image_lq: Tensor, *, blur_px: float = LR_BLUR_PX) -> float:
    """Return PSNR-Y in dB of the image, reduced to its source's size, against that source; at most 50.

    Reduced by antialiased bicubic and clamped, as the source was when it was stored. Both are blurred by a Gaussian of
    `blur_px` source pixels before they are compared, or keeping the source's noise would be rewarded; give 0 for a
    clean bicubic source. Two pixels are cut from each side. NaN where the source has less than 5 px on a side.
    Raises ValueError where the image is not a whole number of times as large. Source: this project's definition.
    """
    image, image_lq = pixels_of(image), pixels_of(image_lq)
    height, width = image_lq.shape[1:]
    scale = image.shape[1] // max(height, 1)
    if scale < 1 or image.shape[1:] != (height * scale, width * scale):
        raise ValueError(
            f"image {tuple(image.shape)} and source {tuple(image_lq.shape)}: the image must be a whole number of "
            "times as large in both directions"
        )
    if blur_px < 0:
        raise ValueError(f"blur_px={blur_px}: must be at least 0")
    if min(height, width) <= 2 * LR_BORDER_PX or not are_finite(image, image_lq):
        return math.nan
    pair = torch.stack([resize_bicubic(image, height, width), image_lq])
    luma = gaussian_blur((pair * torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True), blur_px)
    first, second = luma[:, :, LR_BORDER_PX:-LR_BORDER_PX, LR_BORDER_PX:-LR_BORDER_PX].double()
    error = float((first - second).square().mean())
    return LR_CONSISTENCY_CAP_DB if error == 0 else min(-10 * math.log10(error), LR_CONSISTENCY_CAP_DB)


def pixels_of(image: Tensor) -> Tensor:
    """Return an image as `load_image` does, on the CPU and without a graph. One that is not finite stays as it is."""
    image = image.detach().cpu()
    if image.is_floating_point() and not are_finite(image):
        return image.float()
    return load_image(image)


def eight_bit_bgr(image: Tensor) -> np.ndarray:
    """Return what `pixels_of` gives as BasicSR's metrics want it: uint8 HWC, blue first, rounded as in files."""
    bgr = image.clamp(0, 1).permute(1, 2, 0).flip(2).numpy()
    return np.floor(bgr * 255 + np.float32(0.5)).astype(np.uint8)


def are_finite(*images: Tensor) -> bool:
    """Return whether all pixels are numbers: a cast to 8 bits would make some of those that are none."""
    return all(bool(image.isfinite().all()) for image in images)


def _basicsr_pair(name: str, image: Tensor, reference: Tensor, border_px: int, channel: str, least: int) -> float:
    image, reference = _pair(image, reference)
    if channel not in ("y", "rgb"):
        raise ValueError(f"channel={channel!r}: must be 'y' or 'rgb'")
    if border_px < 0:
        raise ValueError(f"border_px={border_px}: must be at least 0")
    try:
        measure = getattr(basicsr_module("metrics.psnr_ssim"), name)
    except ImportError as error:
        raise MetricUnavailable(str(error)) from error
    if min(image.shape[1:]) < least + 2 * border_px or not are_finite(image, reference):
        return math.nan
    pair = eight_bit_bgr(image), eight_bit_bgr(reference)
    return float(measure(*pair, crop_border=border_px, test_y_channel=channel == "y"))


def _piq_pair(name: str, image: Tensor, reference: Tensor, least: int) -> float:
    image, reference = _pair(image, reference)
    try:
        import piq
    except ImportError as error:
        raise MetricUnavailable(f"{name} needs piq ({error}): pip install 'zoomiqa-reward[restoration]'") from error
    if min(image.shape[1:]) < least or not are_finite(image, reference):
        return math.nan
    return float(getattr(piq, name)(image[None], reference[None], data_range=1.0))


def _pair(image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    image, reference = pixels_of(image), pixels_of(reference)
    if image.shape != reference.shape:
        raise ValueError(f"image {tuple(image.shape)} and reference {tuple(reference.shape)}: sizes must be equal")
    return image, reference
