"""Make low-quality copies of photographs: the second-order degradation of Real-ESRGAN, from BasicSR's parts, seeded.

BasicSR draws from the global generators of Python, numpy and torch. Here every number follows from the seed, and the
three generators are put back as they were. All of it runs on the CPU, so
that a seed means the same image on every device.

Deviations from Wang et al. 2021 (Real-ESRGAN, arXiv 2107.10833) and its released training options
(`options/train_realesrgan_x4plus.yml`): the photograph itself is degraded, not a sharpened copy (USM belongs to their
training target); JPEG's padding to blocks of 16 repeats the edge instead of adding black, which rang into the image.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.degradation.presets import KERNELS, PRESETS, Degradation, DegradationStage, Range, find_preset
from restoration.metrics.basicsr_library import basicsr_module
from restoration.restorer.rng import isolated
from zoomiqa_reward.images.loading import ImageSource, load_image
from zoomiqa_reward.model.numerics import canonical

__all__ = ["PRESETS", "Degradation", "DegradationStage", "degrade", "find_preset"]

RESIZE_MODES = ("area", "bilinear", "bicubic")
MIN_SIDE_PX = 80
"""Reduced to 0.15 of its side, a smaller image has no room left for a kernel's mirrored edge of 10 px."""
LONGEST_KERNEL_PX = 21
"""Drawn sides are odd, 7 to 21."""


@canonical
def degrade(
    image: ImageSource, preset: str | Degradation = "realesrgan", seed: int = 0, scale: int = 4
) -> tuple[Tensor, dict[str, object]]:
    """Return (low-quality copy, record): float32 CHW on the CPU, `scale` times smaller, of 8-bit values / 255.

    `image`: anything that `load_image` takes. Its sides must be multiples of `scale` and, except for pure bicubic, at
    least 80 px (and 11 px after reduction). The same image, recipe, seed and scale give the same copy with the same
    libraries. The record holds the random draws, ready for JSON. Raises ValueError for an unknown preset or an unfit
    size, ImageError.
    """
    recipe = find_preset(preset)
    hr = load_image(image).detach().cpu()
    _check(hr, recipe, scale, seed)
    size = hr.shape[1] // scale, hr.shape[2] // scale
    record: dict[str, object] = {"preset": preset if isinstance(preset, str) else None, "seed": seed, "scale": scale}
    if recipe.is_clean:
        lq = F.interpolate(hr[None], size=size, mode="bicubic", antialias=True)
        return _eight_bit(lq)[0], record | {"steps": []}
    with isolated(seed):
        pieces = _Pieces(np.random.default_rng(seed))
        lq = hr[None]
        for stage in recipe.stages[:-1]:
            lq = pieces.jpeg(_before_jpeg(pieces, lq, stage, size=None), stage.jpeg_range)
        last = recipe.stages[-1]
        lq = _before_jpeg(pieces, lq, last, size=size)
        if pieces.chance(0.5):
            lq = pieces.jpeg(_finish(pieces, lq, size, recipe), last.jpeg_range)
        else:
            lq = _finish(pieces, pieces.jpeg(lq, last.jpeg_range), size, recipe)
    return _eight_bit(lq)[0], record | {"steps": pieces.steps}


def _before_jpeg(pieces: "_Pieces", lq: Tensor, stage: DegradationStage, size: tuple[int, int] | None) -> Tensor:
    if pieces.chance(stage.blur_prob):
        lq = pieces.blur(lq, stage)
    return pieces.noise(pieces.resize(lq, stage, base=size or tuple(lq.shape[2:])), stage)


def _finish(pieces: "_Pieces", lq: Tensor, size: tuple[int, int], recipe: Degradation) -> Tensor:
    lq = pieces.resample(lq, size)
    return pieces.sinc(lq) if pieces.chance(recipe.final_sinc_prob) else lq


class _Pieces:
    """Single degradations of a BCHW image of one, each of which draws its numbers and notes them in `steps`."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.steps: list[dict[str, Any]] = []
        self._library = basicsr_module("data.degradations")

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def blur(self, image: Tensor, stage: DegradationStage) -> Tensor:
        side = self._side()
        if self.chance(stage.sinc_prob):
            return self._filter(image, *self._sinc_kernel(side, lowest=math.pi / (3 if side < 13 else 5)))
        [kind] = self.rng.choice(KERNELS, size=1, p=np.array(stage.kernel_probs) / sum(stage.kernel_probs))
        turn, sigma = [-math.pi, math.pi], list(stage.sigma_px)
        betas = list(stage.generalized_beta), list(stage.plateau_beta)
        kernel = self._library.random_mixed_kernels([str(kind)], [1.0], side, sigma, sigma, turn, *betas)
        return self._filter(image, kernel, {"kind": str(kind), "side_px": side})

    def sinc(self, image: Tensor) -> Tensor:
        return self._filter(image, *self._sinc_kernel(self._side(), lowest=math.pi / 3))

    def resize(self, image: Tensor, stage: DegradationStage, base: tuple[int, ...]) -> Tensor:
        low, high = stage.resize_range
        way = self.rng.choice(3, p=np.array(stage.resize_probs) / sum(stage.resize_probs))
        factor = (self.rng.uniform(1, high), self.rng.uniform(low, 1), 1.0)[way]
        return self.resample(image, tuple(max(1, int(side * factor)) for side in base))

    def resample(self, image: Tensor, size: tuple[int, ...]) -> Tensor:
        mode = str(self.rng.choice(RESIZE_MODES))
        self._note("resize", mode=mode, height=size[0], width=size[1])
        return F.interpolate(image, size=size, mode=mode)

    def noise(self, image: Tensor, stage: DegradationStage) -> Tensor:
        is_gaussian, is_gray = self.chance(stage.gaussian_prob), float(self.chance(stage.gray_noise_prob))
        strength = self.rng.uniform(*(stage.noise_range if is_gaussian else stage.poisson_range))
        self._note("gaussian" if is_gaussian else "poisson", strength=strength, gray=bool(is_gray))
        if is_gaussian:
            return self._library.add_gaussian_noise_pt(image, sigma=strength, gray_noise=is_gray)
        return self._library.add_poisson_noise_pt(image.clamp(0, 1), scale=strength, gray_noise=is_gray)

    @torch.no_grad()
    def jpeg(self, image: Tensor, quality_range: Range) -> Tensor:
        quality = float(self.rng.uniform(*quality_range))
        self._note("jpeg", quality=quality)
        height, width = image.shape[2:]
        framed = F.pad(image.clamp(0, 1), (0, -width % 16, 0, -height % 16), mode="replicate")
        return _codec()(framed, quality=quality)[:, :, :height, :width]

    def _side(self) -> int:
        return int(self.rng.choice(range(7, LONGEST_KERNEL_PX + 1, 2)))

    def _sinc_kernel(self, side: int, lowest: float) -> tuple[np.ndarray, dict[str, Any]]:
        cutoff = float(self.rng.uniform(lowest, math.pi))
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 at the centre, which BasicSR then fills in
            kernel = self._library.circular_lowpass_kernel(cutoff, side)
        return kernel, {"kind": "sinc", "side_px": side, "cutoff": cutoff}

    def _filter(self, image: Tensor, kernel: np.ndarray, drawn: dict[str, Any]) -> Tensor:
        self._note("blur", **drawn)
        return filtered(image, torch.from_numpy(kernel).float())

    def _note(self, name: str, **drawn: Any) -> None:
        self.steps.append({"step": name, **drawn})


@cache
def _codec() -> torch.nn.Module:
    """BasicSR's JPEG, once: it builds its cosine tables in Python loops, which take longer than the coding."""
    return basicsr_module("utils.diffjpeg").DiffJPEG(differentiable=False)


def filtered(image: Tensor, kernel: Tensor) -> Tensor:
    """Return BCHW planes correlated with an odd kernel (k, k), edges mirrored; by FFT, several times faster.

    Equal to BasicSR's `filter2D` to float32 rounding.
    """
    side = kernel.shape[-1]
    padded = F.pad(image, (side // 2,) * 4, mode="reflect").numpy()
    size = [scipy.fft.next_fast_len(length, real=True) for length in padded.shape[-2:]]
    spectrum = scipy.fft.rfft2(padded, s=size) * scipy.fft.rfft2(kernel.flip(0, 1).numpy(), s=size)
    height, width = image.shape[-2:]
    whole = scipy.fft.irfft2(spectrum, s=size)[..., side - 1 : side - 1 + height, side - 1 : side - 1 + width]
    return torch.from_numpy(np.ascontiguousarray(whole, dtype=np.float32))


def _eight_bit(image: Tensor) -> Tensor:
    return image.clamp(0, 1).mul(255).round().div(255)


def _check(image: Tensor, recipe: Degradation, scale: int, seed: int) -> None:
    if scale < 1 or seed < 0:
        raise ValueError(f"scale={scale}, seed={seed}: must be at least 1, and 0 or more")
    height, width = image.shape[1:]
    if height % scale or width % scale:
        raise ValueError(f"image of {width} x {height} px: sides must be multiples of scale={scale}; crop it first")
    least = scale if recipe.is_clean else max(MIN_SIDE_PX, 11 * scale)
    if min(height, width) < least:
        raise ValueError(f"image of {width} x {height} px: sides must be at least {least} px for this degradation")
