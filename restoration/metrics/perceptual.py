"""NIQE and LPIPS: how natural an image looks, and how far two images are apart in a network's features.

LPIPS is two files: its linear weights come with the library, its backbone (AlexNet trained on ImageNet) does not. The
library would fetch it while measuring; here it is read from a local file, or the metric says that it is unavailable.
"""

import functools
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restoration.metrics.basicsr_library import basicsr_module
from restoration.metrics.fidelity import MetricUnavailable, are_finite, eight_bit_bgr, pixels_of
from zoomiqa_reward.model.draws import own_draws
from zoomiqa_reward.model.numerics import canonical
from zoomiqa_reward.runs.digest import file_digest, file_stamp

NIQE_BLOCK_PX = 96
LPIPS_MIN_SIDE_PX = 32
BACKBONE_FILE = "alexnet-owt-7be5be79.pth"
"""What torchvision calls AlexNet's ImageNet weights; it keeps them in torch.hub's `checkpoints` folder."""
_SLICES = {0: "slice1.0", 3: "slice2.3", 6: "slice3.6", 8: "slice4.8", 10: "slice5.10"}  # AlexNet layer -> lpips' name


@canonical
def niqe(image: Tensor) -> float:
    """Return NIQE of one CHW image (about 2 good .. 10 bad, no reference); NaN where it is undefined.

    It is a distance between statistics of 96 px blocks, so it needs at least two whole blocks, and texture in them.
    Computed on luma without border, as BasicSR does. Raises MetricUnavailable where basicsr cannot be imported.
    Source: Mittal et al. 2013, basicsr's `calculate_niqe` and its pristine model.
    """
    try:
        calculate_niqe = basicsr_module("metrics.niqe").calculate_niqe
    except ImportError as error:
        raise MetricUnavailable(f"NIQE: {error}") from error
    image = pixels_of(image)
    height, width = image.shape[1:]
    if (height // NIQE_BLOCK_PX) * (width // NIQE_BLOCK_PX) < 2 or not are_finite(image):
        return math.nan
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(np.asarray(calculate_niqe(eight_bit_bgr(image), crop_border=0)).item())
    except np.linalg.LinAlgError:  # fewer than two blocks have any texture: there is no covariance
        return math.nan


@canonical
@torch.no_grad()
def lpips(image: Tensor, reference: Tensor, *, weights: str | Path | None = None) -> float:
    """Return LPIPS (AlexNet, version 0.1; 0 equal, about 0.7 bad: lower is better); NaN below 32 px.

    `weights`: a file with the state dict of torchvision's AlexNet; by default the one in torch.hub's cache.
    Raises MetricUnavailable without the library or the file, ValueError on different sizes or another file.
    Source: Zhang et al. 2018, library lpips.
    """
    image, reference = pixels_of(image), pixels_of(reference)
    if image.shape != reference.shape:
        raise ValueError(f"image {tuple(image.shape)} and reference {tuple(reference.shape)}: sizes must be equal")
    backbone = backbone_file(weights)
    model = _lpips_model(backbone.resolve(), file_stamp(backbone))
    if min(image.shape[1:]) < LPIPS_MIN_SIDE_PX:
        return math.nan
    return float(model(image[None], reference[None], normalize=True))


def backbone_file(weights: str | Path | None = None) -> Path:
    """Return the file that LPIPS' backbone is read from. Raises MetricUnavailable that says how to get one."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE_FILE if weights is None else Path(weights)
    if not path.is_file():
        raise MetricUnavailable(
            f"LPIPS needs its backbone, and {path} is no file: give the path of torchvision's AlexNet weights "
            f"({BACKBONE_FILE}; weights=, or --lpips-weights on the command line). Nothing is fetched here"
        )
    return path


def backbone_hash(weights: str | Path | None = None) -> str:
    """Return 16 hex digits of the backbone's file. Raises MetricUnavailable as `backbone_file` does."""
    return file_digest(backbone_file(weights), size=16)


@functools.lru_cache(maxsize=2)  # keyed by the stamp too, so an exchanged file is read again
def _lpips_model(path: Path, stamp: tuple[int, ...]) -> Any:
    try:
        import lpips as library
    except ImportError as error:
        raise MetricUnavailable(f"LPIPS needs lpips ({error}): pip install 'zoomiqa-reward[restoration]'") from error
    # The library draws random weights first, and calls torchvision by arguments that it warns of.
    with warnings.catch_warnings(), own_draws(0):
        warnings.simplefilter("ignore")
        model = library.LPIPS(net="alex", pnet_rand=True, verbose=False)
    stored = torch.load(path, map_location="cpu", weights_only=True)
    wanted = {f"features.{layer}.{suffix}": f"{name}.{suffix}" for layer, name in _SLICES.items()
              for suffix in ("weight", "bias")}  # fmt: skip
    if missing := sorted(set(wanted) - set(stored)):
        raise ValueError(f"{path}: holds no {missing[0]}; LPIPS wants the state dict of torchvision's AlexNet")
    model.net.load_state_dict({name: stored[key] for key, name in wanted.items()})
    return model.eval().requires_grad_(False)
