"""Classical restorations of a degraded photograph, without any network.

Pillow resamples float planes, so nothing is rounded to 8 bits on the way. scikit-image denoises and deblurs (extra
`demo` or `restoration`); it is imported when called.
"""

import math
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoomiqa_reward.images.filters import jpeg_file

Array = np.ndarray
"""Float32 HWC in [0, 1]."""

_KERNELS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MIN_SIDE_PX = 16
"""Smallest side: the patches of non-local means and the Richardson-Lucy kernel need it."""


def classical_candidates(image_lq: Tensor, scale: int) -> dict[str, Tensor]:
    """Return the restorations by name, float32 CHW in [0, 1] on the CPU, each `scale` times as large as `image_lq`.

    `image_lq`: float CHW in [0, 1] with 1 or 3 channels, sides at least 16 px. `scale` 1 to 4; at 1 the four
    resamplings give the same image, which is returned once, as `input`. Deterministic.
    Raises ValueError for another shape or scale, ImportError (naming the extra) without scikit-image.
    """
    _check(image_lq, scale)
    lq = image_lq.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    candidates = {"input": lq} if scale == 1 else {name: enlarge(lq, scale, name) for name in _KERNELS}
    candidates |= _sharpened(lq, scale) | _denoised(lq, scale)
    return {name: _tensor(image) for name, image in candidates.items()}


def enlarge(image: Array, scale: float, kernel: str) -> Array:
    """Return the HWC image at `scale` times its size; float planes, clipped to [0, 1] at the end."""
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(image[..., c])).resize((width, height), _KERNELS[kernel]))
        for c in range(image.shape[2])
    ]
    return np.clip(np.stack(planes, axis=-1), 0, 1)


def _sharpened(lq: Array, scale: int) -> dict[str, Array]:
    _, restore = _skimage()
    bicubic, lanczos = enlarge(lq, scale, "bicubic"), enlarge(lq, scale, "lanczos")
    kernel = _gaussian_kernel(sigma=0.8, radius=3)
    # Mirrored edges, since skimage's convolution sees black outside; and each channel by itself, since it reads a
    # third axis as depth.
    edge = 12
    framed = np.pad(lq, ((edge, edge), (edge, edge), (0, 0)), mode="reflect") + 1e-3
    planes = [restore.richardson_lucy(framed[..., c], kernel, num_iter=6) for c in range(lq.shape[2])]
    deblurred = np.stack(planes, axis=-1)[edge:-edge, edge:-edge]
    return {
        "unsharp": _unsharp(bicubic, sigma=0.5 * scale + 0.5, amount=1.0),
        "oversharp": _unsharp(lanczos, sigma=0.75 * scale, amount=5.0),
        "deblur": enlarge(np.clip(deblurred, 0, 1).astype(np.float32), scale, "bicubic"),
    }


def _unsharp(image: Array, sigma: float, amount: float) -> Array:
    # Not skimage's unsharp_mask: in 0.26.0 its channel_axis=-1 indexes rows and returns uninitialised memory.
    filters, _ = _skimage()
    return image + amount * (image - filters.gaussian(image, sigma=sigma, channel_axis=-1))


def _denoised(lq: Array, scale: int) -> dict[str, Array]:
    _, restore = _skimage()
    sigma = max(noise_sigma(lq), 1e-3)
    non_local = restore.denoise_nl_means(
        lq, patch_size=5, patch_distance=6, h=0.8 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
    )
    smooth = restore.denoise_tv_chambolle(lq, weight=2.0 * sigma, channel_axis=-1)
    painted = restore.denoise_tv_chambolle(lq, weight=0.25, channel_axis=-1)
    return {
        # Reshaped, since non-local means drops the axis of a single channel.
        "denoised": enlarge(non_local.astype(np.float32).reshape(lq.shape), scale, "bicubic"),
        "total_variation": enlarge(smooth.astype(np.float32), scale, "lanczos"),
        "oversmooth": enlarge(painted.astype(np.float32), scale, "bicubic"),
    }


def noise_sigma(image: Array) -> float:
    """Return the standard deviation of the noise in an HWC image, from what a double Laplacian leaves.

    Source: J. Immerkaer, Fast Noise Variance Estimation, 1996.
    """
    gray = image.mean(axis=-1)
    rows = gray[:-2] - 2 * gray[1:-1] + gray[2:]
    mask = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    # The mean over channels divides independent noise by sqrt(channels).
    return float(math.sqrt(math.pi / 2) / 6 * np.abs(mask).mean() * math.sqrt(image.shape[2]))


def degrade_for_demo(
    image_hr: Tensor, *, scale: int = 4, blur_px: float = 1.2, noise: float = 0.015, quality: int = 75, seed: int = 0
) -> Tensor:
    """Return a low-quality copy, float32 CHW in [0, 1]: blur, reduction by `scale`, noise and JPEG, in this order.

    `image_hr`: float CHW in [0, 1]. `blur_px` is the Gaussian's sigma in its pixels, `noise` the standard deviation
    of grey-level noise, `quality` JPEG's. The same seed gives the same copy. Raises ValueError for another shape.
    """
    _check(image_hr, scale)
    filters, _ = _skimage()
    hr = image_hr.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    small = enlarge(filters.gaussian(hr, sigma=blur_px, channel_axis=-1).astype(np.float32), 1 / scale, "bicubic")
    small = small + noise * np.random.default_rng(seed).standard_normal(small.shape)
    pixels = (np.clip(small, 0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    read = np.asarray(jpeg_file(image, quality), dtype=np.float32) / 255
    return _tensor(read if read.ndim == 3 else read[..., None])


def _gaussian_kernel(sigma: float, radius: int) -> Array:
    x = np.arange(-radius, radius + 1)
    kernel = np.exp(-(x[:, None] ** 2 + x[None] ** 2) / (2 * sigma**2))
    return kernel / kernel.sum()


def _tensor(image: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)).clamp(0, 1)


def _check(image: Tensor, scale: int) -> None:
    if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.is_floating_point():
        raise ValueError(f"image is {image.dtype} {tuple(image.shape)}: must be float CHW in [0, 1], 1 or 3 channels")
    if min(image.shape[1:]) < MIN_SIDE_PX:
        raise ValueError(f"image of {image.shape[2]} x {image.shape[1]} px: sides must be at least {MIN_SIDE_PX} px")
    if scale not in (1, 2, 3, 4):
        raise ValueError(f"scale={scale}: must be 1, 2, 3 or 4")


def _skimage() -> tuple[ModuleType, ModuleType]:
    try:
        from skimage import filters, restoration
    except ImportError as error:
        raise ImportError("classical candidates need scikit-image: pip install 'zoomiqa-reward[demo]'") from error
    return filters, restoration
