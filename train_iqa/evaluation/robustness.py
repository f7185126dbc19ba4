"""How much a rating changes without a visible reason: by invisible changes of the image, and from call to call.

The changes are JPEG 95, a shift by one pixel and a resize to 98 %. If they move a rating by more than two candidates
differ, the reward ranks noise, and an optimiser exploits the noise.

If repeated calls differ by as much as two candidates do, best-of-N chooses at random. So the report gives the spread of
repeated calls next to the spread between images.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from train_iqa.evaluation.correlations import raw_correlations
from zoomiqa_reward.images.filters import resize_bicubic, through_jpeg

JPEG_QUALITY = 95
RESIZE = 0.98


def jpeg95(image: Tensor) -> Tensor:
    """Return a float32 CHW image in [0, 1] after JPEG of quality 95 with full colour resolution."""
    return through_jpeg(image, JPEG_QUALITY, subsampling=0)


def shift1(image: Tensor) -> Tensor:
    """Return the image moved one pixel right and down; its size stays, the first row and column are repeated."""
    return pad(image[None], (1, 0, 1, 0), mode="replicate")[0, :, :-1, :-1].contiguous()


def resize98(image: Tensor) -> Tensor:
    """Return the image with sides of 0.98 of the old ones, rounded (bicubic, antialiased), clamped to [0, 1].

    Every side of at least 2 pixels shrinks by at least one.
    """
    height, width = (max(1, min(side - 1, round(side * RESIZE))) for side in image.shape[1:])
    return resize_bicubic(image, height, width)


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
    results: dict[str, dict[str, float]] = {}
    for name in PERTURBATIONS:
        copies = np.array([perturbation.get(name, math.nan) for perturbation in perturbed], dtype=np.float64)
        good = np.isfinite(original) & np.isfinite(copies)
        changes, sizes = (copies - original)[good], np.abs(copies - original)[good]
        spread = original[good].std(ddof=1) if good.sum() > 1 else 0.0
        results[name] = {
            "images": int(good.sum()),
            "failed": int((np.isfinite(original) & ~np.isfinite(copies)).sum()),
            "change_mean": float(changes.mean()) if len(sizes) else math.nan,
            "abs_mean": float(sizes.mean()) if len(sizes) else math.nan,
            "abs_p95": float(np.quantile(sizes, 0.95)) if len(sizes) else math.nan,
            "abs_max": float(sizes.max()) if len(sizes) else math.nan,
            "abs_to_spread": float(sizes.mean() / spread) if spread > 0 else math.nan,
        }
    return results


def spread_of_calls(calls: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return what k ratings an image say, over the images where all k are there.

    `images`, `left_out` (a call failed), `std_mean` (unbiased, mean over images), `std_max`, `share_identical` (all
    calls bit-equal), `noise_to_signal`: std_mean over the standard deviation between the images' means. NaN where there
    is no image with at least 2 ratings; the last also for fewer than 2 images or equal ones.
    Raises ValueError where the images have different numbers of calls.
    """
    table = _table(calls)
    whole = table[np.isfinite(table).all(axis=1)]
    results = {"images": len(whole), "left_out": len(table) - len(whole), "calls": table.shape[1]}
    if len(whole) == 0 or table.shape[1] < 2:
        return results | dict.fromkeys(("std_mean", "std_max", "share_identical", "noise_to_signal"), float("nan"))
    is_same = np.ptp(whole, axis=1) == 0
    stds = np.where(is_same, 0.0, whole.std(axis=1, ddof=1))  # the mean of equal numbers may round
    signal = whole.mean(axis=1).std(ddof=1) if len(whole) > 1 else 0.0
    return results | {
        "std_mean": float(stds.mean()),
        "std_max": float(stds.max()),
        "share_identical": float(is_same.mean()),
        "noise_to_signal": float(stds.mean() / signal) if signal > 0 else float("nan"),
    }


def gain_over_sampling(
    ratings: Sequence[float], sampled: Sequence[Sequence[float]], mos: Sequence[float]
) -> dict[str, float]:
    """Return SRCC and PLCC with MOS of one deterministic rating, of one sampled answer, and of the samples' mean.

    Over the images where all are readable (`images`; the others are `left_out`). `..._one_sample` is the mean over the
    k calls, each taken as a whole run of the data set; `..._gain` is deterministic minus one sample. NaN for fewer than
    2 images or constant ratings.
    """
    table, single, opinion = _table(sampled), np.asarray(ratings, dtype=np.float64), np.asarray(mos, dtype=np.float64)
    whole = np.isfinite(table).all(axis=1) & np.isfinite(single)
    table, single, opinion = table[whole], single[whole], opinion[whole]
    results = {"images": int(whole.sum()), "left_out": int((~whole).sum()), "calls": table.shape[1]}
    for index, name in enumerate(("plcc", "srcc")):
        item = float(np.mean([_pair(column, opinion)[index] for column in table.T])) if table.size else float("nan")
        alone = _pair(single, opinion)[index]
        results |= {
            f"{name}_deterministic": alone,
            f"{name}_one_sample": item,
            f"{name}_mean_of_samples": _pair(table.mean(axis=1), opinion)[index] if table.size else float("nan"),
            f"{name}_gain": alone - item,
        }
    return results


def _table(calls: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    lengths = {len(call) for call in calls}
    if len(lengths) > 1:
        raise ValueError(f"images with {sorted(lengths)} calls: all must have the same number")
    return np.asarray(calls, dtype=np.float64).reshape(len(calls), lengths.pop() if lengths else 0)


def _pair(ratings: NDArray[np.float64], mos: NDArray[np.float64]) -> tuple[float, float]:
    return raw_correlations(ratings, mos) if len(mos) >= 2 else (float("nan"), float("nan"))
