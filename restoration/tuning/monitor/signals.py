"""What a picture shows when a reward is being hacked: fine energy, a grid, another style, no diversity.

All take BCHW pictures in [0, 1] and return one float64 number a picture or a set; NaN where a picture is too small.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from restoration.metrics.fidelity import gaussian_blur

FINE_SIGMA_PX = 1.0
"""What a Gaussian of this width takes away is called fine."""
MIN_PERIODS = 4
"""Periods that a picture must hold before a peak in its spectrum means anything."""
_LUMA = (0.299, 0.587, 0.114)


def luma(pictures: Tensor) -> Tensor:
    """Return B1HW BT.601 luma of RGB pictures, full range."""
    factors = torch.tensor(_LUMA, dtype=pictures.dtype, device=pictures.device).view(1, 3, 1, 1)
    return (pictures * factors).sum(dim=1, keepdim=True)


def fine_energy(pictures: Tensor) -> Tensor:
    """Return [batch] mean square of what a Gaussian blur takes away: over-sharpening raises it, smoothing lowers it."""
    planes = luma(pictures.detach().cpu().double())
    return (planes - gaussian_blur(planes, FINE_SIGMA_PX)).square().flatten(1).mean(dim=1)


def grid_peak(pictures: Tensor, period_px: int) -> Tensor:
    """Return [batch] in dB: power at 1 / `period_px` cycles a pixel over the median of its neighbours, both directions.

    0 for a picture without a grid, whatever else is in it. NaN where a side holds fewer than 4 periods, or where the
    period is 1. Power spectra along one axis are averaged over the other; the sides are cut to whole periods.
    """
    planes = luma(pictures.detach().cpu().double())[:, 0]
    height, width = (side // period_px * period_px for side in planes.shape[-2:])
    if period_px < 2 or min(height, width) < MIN_PERIODS * period_px:
        return torch.full((len(planes),), math.nan, dtype=torch.float64)
    planes = planes[:, :height, :width]
    found = []
    for axis, length in ((2, width), (1, height)):
        # Differences flatten a photograph's falling spectrum, so that neighbours are comparable.
        power = torch.fft.rfft(planes.diff(dim=axis, append=planes.narrow(axis, 0, 1)), dim=axis).abs().square()
        spectrum = power.mean(dim=3 - axis)
        place = length // period_px
        near = [k for k in range(place - 3, place + 4) if 0 < k < spectrum.shape[1] and k != place]
        floor = spectrum[:, near].median(dim=1).values + 1e-12
        found.append(10 * torch.log10((spectrum[:, place] + 1e-12) / floor))
    return torch.stack(found).mean(dim=0)


def gram_distance(features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Return [batch] mean relative distance of Gram matrices of feature maps BCHW: 0 the same style.

    Of each map: |G - G'|_F / |G'|_F, with G the channels' inner products over positions; then the mean over maps.
    Source: Gatys et al. 2016 (the matrices; the relative form is ours, so that maps weigh alike).
    """
    found = []
    for one, other in zip(features, others, strict=True):
        mine, theirs = (_gram(part) for part in (one, other))
        found.append((mine - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1).clamp_min(1e-12))
    return torch.stack(found).mean(dim=0)


def diversity(pictures: Tensor) -> float:
    """Return how much candidates of one LR picture differ: standard deviation over them, mean over pixels.

    Raises ValueError for fewer than two.

    >>> diversity(torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]))
    0.5
    """
    if len(pictures) < 2:
        raise ValueError(f"{len(pictures)} candidates: diversity needs at least 2")
    return float(pictures.detach().cpu().double().std(dim=0, correction=0).mean())


def _gram(maps: Tensor) -> Tensor:
    flat = maps.detach().cpu().double().flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]
