"""How much detail of each frequency a token holds: what a vision tower has to measure before it can judge.

Log energies are targets with little noise: in the image as it is, in its clean reference, and in their difference.
From one quality number a token a small tower needs thousands of steps to find that noise and sharpness are energies
that span four decades; told so, it finds them within hundreds.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from train_iqa.nano.labels import TOKEN_PX
from zoomiqa_reward.images.filters import gaussian_blur, luma

SIGMAS_PX = (0.6, 1.2, 2.4, 4.8)
NUM_BANDS = len(SIGMAS_PX) + 1
"""Three bands of brightness between neighbouring sigmas, the finest above the first, and fine colour."""
FLOOR = 1e-6
"""Mean square below which there is nothing to see: a quarter of an 8-bit step."""


def _blurred(x: Tensor, sigma_px: float) -> Tensor:
    return gaussian_blur(x, sigma_px, radius_px=int(4 * sigma_px + 0.5), edges="reflect")


def band_energies(images: Tensor) -> Tensor:
    """Return log10 of the mean square of each band in each 28 px token: (B, rows, columns, NUM_BANDS), for BCHW."""
    grey = luma(images)
    chroma = images - grey
    levels = [grey, *(_blurred(grey, sigma) for sigma in SIGMAS_PX)]
    squares = [(fine - coarse).square() for fine, coarse in pairwise(levels)]
    squares.append((chroma - _blurred(chroma, SIGMAS_PX[1])).square().mean(1, keepdim=True))
    return torch.log10(avg_pool2d(torch.cat(squares, 1), TOKEN_PX) + FLOOR).permute(0, 2, 3, 1)


def band_targets(images: Tensor, references: Tensor) -> Tensor:
    """Return (B, rows, columns, 3 * NUM_BANDS): energies of the image, of its reference, and of their difference."""
    return torch.cat([band_energies(x) for x in (images, references, images - references)], dim=-1)
