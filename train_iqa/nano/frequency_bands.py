"""How much detail of each frequency a token holds: what a vision tower has to measure before it can judge.

Log energies are targets with little noise: in the image as it is, in its clean reference, and in their difference.
From one quality number a token a small tower needs thousands of steps to find that noise and sharpness are energies
that span four decades; told so, it finds them within hundreds.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

from train_iqa.nano.labels import TOKEN_PX

SIGMAS_PX = (0.6, 1.2, 2.4, 4.8)
NUM_BANDS = len(SIGMAS_PX) + 1
"""Three bands of brightness between neighbouring sigmas, the finest above the first, and fine colour."""
FLOOR = 1e-6
"""Mean square below which there is nothing to see: a quarter of an 8-bit step."""
LUMA = (0.299, 0.587, 0.114)


def _blurred(x: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur of BCHW within four sigmas, mirrored at the edges."""
    radius, channels = int(4 * sigma_px + 0.5), x.shape[1]
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-offsets.square() / (2 * sigma_px**2))
    kernel = (kernel / kernel.sum()).expand(channels, 1, 1, -1)
    x = conv2d(pad(x, (radius, radius, 0, 0), mode="reflect"), kernel, groups=channels)
    return conv2d(pad(x, (0, 0, radius, radius), mode="reflect"), kernel.transpose(2, 3), groups=channels)


def band_energies(images: Tensor) -> Tensor:
    """Return log10 of the mean square of each band in each 28 px token: (B, rows, columns, NUM_BANDS), for BCHW."""
    luma = (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    chroma = images - luma
    levels = [luma, *(_blurred(luma, sigma) for sigma in SIGMAS_PX)]
    squares = [(fine - coarse).square() for fine, coarse in pairwise(levels)]
    squares.append((chroma - _blurred(chroma, SIGMAS_PX[1])).square().mean(1, keepdim=True))
    return torch.log10(avg_pool2d(torch.cat(squares, 1), TOKEN_PX) + FLOOR).permute(0, 2, 3, 1)


def band_targets(images: Tensor, references: Tensor) -> Tensor:
    """Return (B, rows, columns, 3 * NUM_BANDS): energies of the image, of its reference, and of their difference."""
    return torch.cat([band_energies(x) for x in (images, references, images - references)], dim=-1)
