"""What an image shows when a reward is being hacked: fine energy, a grid, another style, no diversity.

All take BCHW images in [0, 1] and return one float64 number per image or a set; NaN where an image is too small.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zoomiqa_reward.images.filters import gaussian_blur, luma

FINE_SIGMA_PX = 1.0
"""What a Gaussian of this width takes away is called fine."""
MIN_PERIODS = 4
"""Periods that an image must hold before a peak in its spectrum means anything."""


def fine_energy(images: Tensor) -> Tensor:
    """Return [batch] mean square of what a Gaussian blur takes away: over-sharpening raises it, smoothing lowers it."""
    planes = luma(images.detach().cpu().double())
    return (planes - gaussian_blur(planes, FINE_SIGMA_PX)).square().flatten(1).mean(dim=1)


def grid_peak(images: Tensor, period_px: int) -> Tensor:
    """Return [batch] in dB: power at 1 / `period_px` cycles a pixel over the median of its neighbours, both directions.

    0 for an image without a grid, whatever else is in it. NaN where a side holds fewer than 4 periods, or where the
    period is 1. Power spectra along one axis are averaged over the other; the sides are cut to whole periods.
    """
    planes = luma(images.detach().cpu().double())[:, 0]
    height, width = (side // period_px * period_px for side in planes.shape[-2:])
    if period_px < 2 or min(height, width) < MIN_PERIODS * period_px:
        return torch.full((len(planes),), math.nan, dtype=torch.float64)
    planes = planes[:, :height, :width]
    peaks = []
    for axis, length in ((2, width), (1, height)):
        # Differences flatten a photograph's falling spectrum, so that neighbours are comparable.
        power = torch.fft.rfft(planes.diff(dim=axis, append=planes.narrow(axis, 0, 1)), dim=axis).abs().square()
        spectrum = power.mean(dim=3 - axis)
        harmonic = length // period_px
        near = [k for k in range(harmonic - 3, harmonic + 4) if 0 < k < spectrum.shape[1] and k != harmonic]
        floor = spectrum[:, near].median(dim=1).values + 1e-12
        peaks.append(10 * torch.log10((spectrum[:, harmonic] + 1e-12) / floor))
    return torch.stack(peaks).mean(dim=0)


def gram_distance(features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Return [batch] mean relative distance of Gram matrices of feature maps BCHW: 0 the same style.

    Of each map: |G - G'|_F / |G'|_F, with G the channels' inner products over positions; then the mean over maps.
    Source: Gatys et al. 2016 (the matrices; the relative form is ours, so that maps weigh alike).
    """
    distances = []
    for first, other in zip(features, others, strict=True):
        mine, theirs = (_gram(maps) for maps in (first, other))
        distances.append((mine - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1).clamp_min(1e-12))
    return torch.stack(distances).mean(dim=0)


def diversity(images: Tensor) -> float:
    """Return how much candidates of one LR image differ: standard deviation over them, mean over pixels.

    Raises ValueError for fewer than two.

    >>> diversity(torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]))
    0.5
    """
    if len(images) < 2:
        raise ValueError(f"{len(images)} candidates: diversity needs at least 2")
    return float(images.detach().cpu().double().std(dim=0, correction=0).mean())


def _gram(maps: Tensor) -> Tensor:
    flat = maps.detach().cpu().double().flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]
