"""Quality metrics by their usual names, as plain functions of float images; nothing is fetched at run time.

Each takes CHW tensors in [0, 1] and returns a float. NIQE is basicsr's (lower is better), FSIM piq's (higher).
Held out for judging: FSIM is never used for the labels that embedded models are trained on.
"""

import math
import warnings

import numpy as np
import torch
from torch import Tensor

NIQE_MIN_SIDE_PX = 96


class MetricUnavailable(ImportError):
    """A metric's library cannot be imported; the message says what to install."""


def _check_pair(image: Tensor, reference: Tensor) -> None:
    if image.shape != reference.shape:
        raise ValueError(f"image {tuple(image.shape)} and reference {tuple(reference.shape)}: sizes must be equal")


def niqe(image: Tensor) -> float:
    """Return NIQE of one CHW image (about 2 good .. 10 bad, no reference); NaN below 96 px, where it is undefined.

    Computed on luma without border, as BasicSR does. Raises MetricUnavailable where basicsr cannot be imported.
    Source: Mittal et al. 2013, basicsr's `calculate_niqe` and its pristine model.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from basicsr.metrics.niqe import calculate_niqe
    except ImportError as error:
        raise MetricUnavailable(
            f"NIQE needs basicsr ({error}): pip install 'zoomiqa-reward[restoration]'; "
            "if libGL is missing, install the Debian package libgl1"
        ) from error
    if min(image.shape[1:]) < NIQE_MIN_SIDE_PX:
        return math.nan
    bgr = image.detach().cpu().clamp(0, 1).permute(1, 2, 0).flip(2).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(np.asarray(calculate_niqe((bgr * 255).round().astype(np.uint8), crop_border=0)).item())


@torch.no_grad()
def fsim(image: Tensor, reference: Tensor) -> float:
    """Return FSIM (colour version, 0..1, higher is better) of a CHW image against its reference of the same size.

    Raises ValueError on different sizes. Source: Zhang et al. 2011, piq's implementation.
    """
    import piq

    _check_pair(image, reference)
    return float(piq.fsim(image[None].cpu(), reference[None].cpu(), data_range=1.0))
