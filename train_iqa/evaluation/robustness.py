"""Does a rating hold still under changes that nobody sees? JPEG 95, a shift by one pixel, a resize to 98 %.

A reward that moves by more under these than between two candidates ranks noise, and an optimiser will find the noise.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from zoomiqa_reward.images.loading import load_image, to_pil

JPEG_QUALITY = 95
RESIZE = 0.98


def jpeg95(image: Tensor) -> Tensor:
    """Return a float32 CHW image in [0, 1] after JPEG of quality 95 with full colour resolution."""
    file = io.BytesIO()
    to_pil(image).save(file, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    file.seek(0)
    with Image.open(file) as decoded:
        return load_image(decoded)


def shift1(image: Tensor) -> Tensor:
    """Return the image moved one pixel right and down; its size stays, the first row and column are repeated."""
    return pad(image[None], (1, 0, 1, 0), mode="replicate")[0, :, :-1, :-1].contiguous()


def resize98(image: Tensor) -> Tensor:
    """Return the image with sides of 0.98 of the old ones, rounded (bicubic, antialiased), clamped to [0, 1].

    Every side of at least 2 pixels shrinks by at least one.
    """
    height, width = (max(1, min(side - 1, round(side * RESIZE))) for side in image.shape[1:])
    return interpolate(image[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)


PERTURBATIONS: dict[str, Callable[[Tensor], Tensor]] = {"jpeg95": jpeg95, "shift1": shift1, "resize98": resize98}


def perturbed_ratings(rate: Callable[[Tensor], float], image: Tensor) -> dict[str, float]:
    """Return the rating of each perturbed copy; `rate` gives NaN for what it cannot measure."""
    with torch.no_grad():
        return {name: rate(change(image)) for name, change in PERTURBATIONS.items()}


def rating_changes(ratings: Sequence[float], perturbed: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return perturbation -> what it does to ratings, over the images where both are readable.

    `images`, `failed` (the untouched image has a rating and its copy has none), `change_mean` (signed, copy minus
    original), `abs_mean`, `abs_p95`, `abs_max`, and `abs_to_spread`: abs_mean over the standard deviation of the
    ratings between images. NaN where there is nothing to count.
    """
    original = np.asarray(ratings, dtype=np.float64)
    found: dict[str, dict[str, float]] = {}
    for name in PERTURBATIONS:
        copies = np.array([one.get(name, math.nan) for one in perturbed], dtype=np.float64)
        good = np.isfinite(original) & np.isfinite(copies)
        changes, sizes = (copies - original)[good], np.abs(copies - original)[good]
        spread = original[good].std(ddof=1) if good.sum() > 1 else 0.0
        found[name] = {
            "images": int(good.sum()),
            "failed": int((np.isfinite(original) & ~np.isfinite(copies)).sum()),
            "change_mean": float(changes.mean()) if len(sizes) else math.nan,
            "abs_mean": float(sizes.mean()) if len(sizes) else math.nan,
            "abs_p95": float(np.quantile(sizes, 0.95)) if len(sizes) else math.nan,
            "abs_max": float(sizes.max()) if len(sizes) else math.nan,
            "abs_to_spread": float(sizes.mean() / spread) if spread > 0 else math.nan,
        }
    return found
